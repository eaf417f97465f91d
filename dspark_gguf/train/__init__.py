"""Train a block draft (DSpark) for a target GGUF: ``dspark-gguf train``.

Each step can be stopped and resumed, and keeps its files in one work folder: the target writes
conversations (``generate.py``), its layer inputs and logits are recorded (``record.py``), a small
network learns to predict them (``fit.py``), is written as a GGUF (``export.py``) and served
(``served.py``). Only ``network.py`` and the modules built on it import torch.
"""
