"""How quantized weights are stored: one file per format, each a codec between logical tensors and stored ones.

Everything above speaks of logical tensors, those of the unquantized model; everything below copies stored bytes. A
codec is the only place that knows both. It reads ranges and entries, never a model. A plain tensor needs no codec.
"""
