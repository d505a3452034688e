"""A pretrained model of the ladder is made to do something: to sort, then to follow instructions.

    python -m finetune.classify --from=runs/gpt-tales --task=topic
    python -m finetune.instruct --from=runs/gpt-tales
    python -m finetune.evaluate --run=RUN --test=FILE

tasks.py and strings.py say what is learned, adapt.py which weights learn it, chat.py how a
conversation becomes tokens; judge.py, measures.py and baselines.py judge. The loop is that of
train.py; learn.py hands it a network that sorts.
"""
