"""Forty questions of general knowledge with four choices each, written for this project (MMLU's form).

The first choice is the right one here; `rows` deals the choices, so that every letter is right equally often.
"""

import random

QUESTIONS = {
    "nature": (
        ("Which gas do green plants take in to make sugar?", "Carbon dioxide", "Oxygen", "Nitrogen", "Helium"),
        ("What do bees collect from flowers to make honey?", "Nectar", "Leaves", "Bark", "Seeds"),
        ("Which organ pumps blood through the human body?", "The heart", "The liver", "The lungs", "The stomach"),
        ("Which of these animals is a mammal?", "A bat", "A penguin", "A frog", "A salmon"),
        ("What does a caterpillar turn into?", "A butterfly", "A beetle", "A spider", "A worm"),
        ("Which sense do the ears serve?", "Hearing", "Smell", "Taste", "Sight"),
        ("Which part of a plant usually grows below the ground?", "The root", "The flower", "The leaf", "The fruit"),
        ("Which of these animals lays eggs?", "A hen", "A cow", "A dog", "A horse"),
        ("What do we call a young sheep?", "A lamb", "A calf", "A foal", "A kitten"),
        ("What is frozen water called?", "Ice", "Steam", "Dew", "Fog"),
    ),
    "earth": (
        ("Around which body does the Earth travel once a year?", "The Sun", "The Moon", "Mars", "Venus"),
        ("In which direction does the Sun rise?", "East", "West", "North", "South"),
        ("Which is the largest ocean?", "The Pacific", "The Atlantic", "The Indian Ocean", "The Arctic Ocean"),
        ("On which continent is Egypt?", "Africa", "Europe", "South America", "Australia"),
        ("What is the capital of France?", "Paris", "Madrid", "Rome", "Vienna"),
        ("Which of these is a desert?", "The Sahara", "The Amazon", "The Danube", "The Baltic"),
        ("How many days does a leap year have?", "366", "365", "364", "360"),
        ("Which season follows winter?", "Spring", "Summer", "Autumn", "The monsoon"),
        ("What causes the tides of the sea?", "The Moon", "The wind", "Fish", "Ships"),
        ("Which of these countries is an island?", "Iceland", "Poland", "Mongolia", "Bolivia"),
    ),
    "numbers": (
        ("How many sides does a triangle have?", "Three", "Four", "Five", "Six"),
        ("What is half of one hundred?", "Fifty", "Twenty", "Forty", "Seventy"),
        ("Which of these numbers is even?", "Eight", "Seven", "Nine", "Eleven"),
        ("How many minutes are in one hour?", "60", "100", "24", "12"),
        ("What is three times four?", "Twelve", "Seven", "Nine", "Sixteen"),
        ("Which of these numbers is the smallest?", "0.05", "0.5", "5", "50"),
        ("How many centimetres are in one metre?", "100", "10", "1000", "60"),
        ("What is the next number after 2, 4, 6?", "8", "7", "9", "12"),
        ("How many months have 28 days or more?", "All twelve", "One", "Four", "Seven"),
        ("What is the square root of 81?", "9", "8", "27", "40"),
    ),
    "daily life": (
        ("What do you use to cut paper?", "Scissors", "A spoon", "A pillow", "A rope"),
        ("Where are books lent to readers?", "A library", "A bakery", "A garage", "A pharmacy"),
        ("What keeps food cold in a kitchen?", "A refrigerator", "An oven", "A toaster", "A kettle"),
        ("Who repairs teeth?", "A dentist", "A pilot", "A tailor", "A gardener"),
        ("What do you wear on your feet?", "Shoes", "Gloves", "A hat", "A scarf"),
        ("What is bread mostly made of?", "Flour", "Meat", "Cheese", "Sugar"),
        ("Which of these do you read?", "A newspaper", "A lamp", "A chair", "A bottle"),
        ("What tells you the time?", "A clock", "A scale", "A mirror", "A compass"),
        ("Which vehicle travels on rails?", "A train", "A bicycle", "A ship", "A lorry"),
        ("Which of these is a musical instrument?", "A violin", "A hammer", "A candle", "A ladder"),
    ),
}


def rows() -> tuple[list[dict], str]:
    """Rows with question, choices[4], answer and subject (too few of them for errors clustered by subject)."""
    letters = [position % 4 for position in range(sum(map(len, QUESTIONS.values())))]
    random.Random(0).shuffle(letters)
    made = []
    for subject, questions in QUESTIONS.items():
        for question, right, *others in questions:
            answer = letters[len(made)]
            choices = [*others[:answer], right, *others[answer:]]
            made.append({"subject": subject, "question": question, "choices": choices, "answer": answer})
    return made, f"{len(made)} questions written for this project"
