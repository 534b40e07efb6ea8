"""Hugging Face folders of decoders: config.json and safetensors, to and from a `Decoder`.

- `family_table`: one row for each family (`model_type`); `families` reads and writes config.json
  by it, `rope_config` the keys of the rotary embedding;
- `names`: the tensors' names of each family; `tensor_map` says by them which tensor of a checkpoint
  is which parameter;
- `tensor_files`: the safetensors of a folder; `reading` and `writing`: whole folders.

To add a family whose computation `DecoderConfig` can express:

1. add a row to `family_table.FAMILIES`, under the `model_type` of transformers. If no table of
   `names` has the names of its tensors, add one there;
2. add a small config to FAMILIES of tests/golden/language/make.py, and run it with "golden" in an
   environment with torch and transformers. Every test of the golden checkpoints then covers the
   family; until there is one, test_family_table.py fails and names the family.

Nothing else knows the families: errors that list them read the table.
"""
