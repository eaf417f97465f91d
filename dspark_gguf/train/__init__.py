"""Train a block draft (DSpark) for a target GGUF: ``dspark-gguf train``.

Steps that can each be stopped and resumed, in one folder of work: the target writes conversations
(``generate.py``), what its layers read and say there is recorded (``record.py``), a small network
learns to guess it (``fit.py``), is written as a GGUF (``export.py``) and served (``served.py``).
Only ``network.py`` and what stands on it import torch.
"""
