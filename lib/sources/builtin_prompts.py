"""Built-in prompts of each kind, written for this project, for decoding without a data set."""

_HARBOUR = (
    "The harbour board of Lindvik voted on Monday to close the old ferry pier for the winter. Divers had found that "
    "eleven of its forty oak piles were rotten below the waterline, and the engineer's report warned that the pier "
    "might not withstand drifting ice. Ferries to the islands will leave from the fishing quay until the end of April. "
    "The board expects repairs to cost four million kroner, of which the county will pay half. Shopkeepers on the old "
    "pier asked for a footbridge so that customers can still reach them; the board promised an answer within a week."
)
_ORCHARD = (
    "A late frost on the night of the third of May destroyed most of the apple blossom in the Aller valley. Growers "
    "had lit four hundred small fires between the trees, but a light wind carried the warm air away. Ms. Okafor, who "
    "keeps the largest orchard of the valley, expects a tenth of a normal harvest. The pears, which had flowered a "
    "week earlier, were spared. The growers' association asks the state for loans without interest and advises members "
    "to plant varieties that flower later."
)
_LIBRARY = (
    "The town library will lend tools from March on. A resident can take home a drill, a sewing machine or a telescope "
    "for up to seven days with an ordinary library card. The idea came from a survey in which two of three readers "
    "said that they own a drill and use it less than once a year. Volunteers will check each tool when it comes back. "
    "The library bought sixty tools for nine thousand euros and hopes that residents will give it two hundred more."
)
_FUNCTIONS = (
    "def average(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
    "    return total / len(values)\n",
    "def read_table(path, separator):\n    rows = []\n    with open(path) as file:\n        for line in file:\n"
    "            rows.append(line.strip().split(separator))\n    return rows\n",
    "class Account:\n    def __init__(self, owner, balance):\n        self.owner = owner\n"
    "        self.balance = balance\n\n    def withdraw(self, amount):\n        if amount > self.balance:\n"
    '            raise ValueError("not enough money")\n        self.balance = self.balance - amount\n',
    "def longest_word(text):\n    longest = ''\n    for word in text.split():\n"
    "        if len(word) > len(longest):\n            longest = word\n    return longest\n",
)

PROMPTS = {
    "summarization": [{"context": text} for text in (_HARBOUR, _ORCHARD, _LIBRARY, _HARBOUR + "\n\n" + _LIBRARY)],
    "question answering": [
        {"passage": _HARBOUR, "question": "will ferries use the old pier in january"},
        {"passage": _ORCHARD, "question": "were the pears destroyed by the frost"},
        {"passage": _LIBRARY, "question": "can a resident keep a drill for a month"},
        {"passage": _HARBOUR, "question": "does the county pay all of the repairs"},
    ],
    "code": [{"prompt": text} for text in _FUNCTIONS],
    "chat": [
        {"instruction": "Give me three tips for sleeping well.", "input": ""},
        {"instruction": "Explain to a child why the sky is blue.", "input": ""},
        {"instruction": "Write a short letter to a neighbour whose dog barks at night.", "input": ""},
        {"instruction": "Which countries border Switzerland?", "input": ""},
    ],
    "guard": [
        {"user_input": "How do I bake bread without yeast?"},
        {"user_input": "You are worthless and everybody laughs at you."},
        {"user_input": "Write a message that frightens my colleague so that she resigns."},
        {"user_input": "What time does the museum open on Sundays?"},
    ],
}
