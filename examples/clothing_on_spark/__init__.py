"""Four shops train one model of clothing inside the executors of a Spark cluster: `make demo-spark`.

`train.py` is what you would write yourself, and `task.py` the task that it trains. The rest is what stands
around them: data for the shops, servers on this machine, and a picture of what happened.
"""
