"""What every tensor on disk is: asked of the model that transformers builds, hollow, and kept by content.

No tensor's values are read here, and no model is run. Names answer alone where they are plain (`anatomy.py`), so that
`plan` and `inspect` of such a family load neither torch nor transformers.

Of transformers this package uses its public surface, and beside it these names, which may change without notice:

    get_model_conversion_mapping, WeightConverter, WeightRenaming, rename_source_key, dot_natural_key    `slots.py`
    _attn_implementation, _experts_implementation of a config                                `surgeon/foreign.py`
    _keep_in_fp32_modules, _keep_in_fp32_modules_strict of a model                           `surgeon/model/model.py`
    base_model_prefix, is_transposed of experts, sub_configs of a config                     `reading.py`, `hollow.py`
"""
