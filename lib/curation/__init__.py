"""What goes into a model before a weight is trained: documents in, documents out, one stage a file.

    documents = sources.Shards("crawl/")
    for document in exact.stage(gopher.stage(documents)): ...

Every stage offers `stage(documents, *, tally=None, ...) -> Iterator[Document]`; those that compare documents with each
other also `decide(documents, *, seed=0, ...)`. `pipeline.run` carries stages out shard by shard, and goes on after a
kill.
"""
