"""Sampling and acceptance on the device, in the Triton language (PyPI `triton`; nothing to do with Triton Inference
Server): the same tokens as `tandem.sampling`, from logits that stay where the engine wrote them.

Checked in the interpreter on CPU, bit for bit, and compiled for several GPUs, but **never run on a GPU**. Every launch
sets `enable_fp_fusion=False`: a fused multiply-add rounds once where the definition in `tandem.noise` rounds twice.
"""
