"""What unlearning is: data, objectives, combiners, methods, the ZeRO engine, scoring and frontier maths.

Importing this package needs no Ray; `deepspeed` is imported only below `unlearn_core/zero/`.
"""
