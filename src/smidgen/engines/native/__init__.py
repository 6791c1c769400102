"""The native engine: C++ kernels for whole training steps of tiny networks on the CPU.

`docs/native-engine.md` says how it works and how to add an operation.
"""
