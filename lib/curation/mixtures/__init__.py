"""How much of each domain a model is trained on: weights by size, by bounded repetition, and learned by small models.

    found = domains.make(domains.at_hand())                   # rows of tokens by domain, and text kept out
    temperature.weights(found.sizes, temperature=5)           # and unimax, doremi, doge
    study.compare(found, {"natural": found.natural, ...}, seeds=range(5))

Every file reads like its paper, with the numbers of its equations or algorithm. At the sizes of a notebook most
differences are within their intervals: `study` says so.
"""
