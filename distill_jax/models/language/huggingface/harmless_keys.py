"""Which keys of a config.json do not change the hidden states of an evaluated model.

A key is harmless if it begins with "_" or ends in "_token_id", or if it belongs to a tokenizer,
to generation, to training or to tooling; the lists below name those. Dropout is training: nothing
here drops out. Any other key is part of the model's definition, and one that a family does not
know is refused unless its value turns nothing on, see `says_nothing`.
"""

import re

_BASE = """architectures dtype finetuning_task id2label is_decoder is_llama_config label2id
    label_ids model_name model_type n_ctx name_or_path num_labels output_attentions
    output_hidden_states output_router_logits output_past pretraining_tp problem_type
    reorder_and_upcast_attn return_dict summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params torch_dtype
    torchscript transformers_version use_bfloat16 use_cache vocab_file"""

_TOKENIZER = """add_bos_token add_eos_token add_prefix_space additional_special_tokens bos_token
    chat_template clean_up_tokenization_spaces cls_token eos_token extra_special_tokens legacy
    mask_token max_sequence_length max_seq_len max_seq_length model_max_length pad_token
    padding_idx padding_side prefix sep_token seq_length special_tokens_map split_special_tokens
    truncation_side unk_token use_fast"""

# The fields of `GenerationConfig` of transformers 4 and 5; _token_id is a suffix.
_GENERATION = """assistant_confidence_threshold assistant_early_exit assistant_lookbehind
    bad_words_ids begin_suppress_tokens cache_config cache_implementation compile_config
    constraints disable_compile diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_decoder_ids generation_config
    generation_kwargs guidance_scale is_assistant length_penalty low_memory
    max_generation_length max_length max_matching_ngram_size max_new_tokens max_time min_length
    min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
    output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    sequence_bias stop_strings stop_token_ids stop_words suppress_tokens target_lookbehind
    temperature token_healing top_h top_k top_p typical_p watermarking_config"""

_TRAINING = """batch_size bf16 deepspeed fp16 gradient_checkpointing
    gradient_checkpointing_kwargs ignore_index init_method init_std initializer initializer_factor
    initializer_range initializer_std label_smoothing layerdrop learning_rate loss_function
    loss_kwargs loss_type max_grad_norm mixed_precision num_train_epochs optimizer
    per_device_batch_size recompute_granularity router_jitter_noise seed seq_aux warmup_steps
    weight_decay"""

_TOOLING = """attn_implementation author authors auto_map base_model base_model_ep_plan
    base_model_name_or_path base_model_pp_plan base_model_tp_plan chunk_size_feed_forward datasets
    description experts_implementation flash_attention framework homepage inference language
    library_name license license_link license_name metrics model_card_data model_id pipeline_tag
    pp_plan revision tags tp_plan transformers.js_config use_kernels use_liger use_sdpa
    use_xformers version xformers"""

_NAMES = frozenset(" ".join((_BASE, _TOKENIZER, _GENERATION, _TRAINING, _TOOLING)).split())
_PATTERN = re.compile(
    r"_.*"
    r"|.*_token_ids?|.*_token_index"
    r"|tokenizer(_.*)?"
    # Every rate and switch of dropout, and the weight of a term of a loss of pretraining.
    r"|(.*_)?(dropout|pdrop)(_prob|_rate|_p)?|.*_loss_(coef|alpha|weight|coefficient)"
    r"|(use_)?flash_attn.*|use_flash_attention.*|use_memory_efficient_attention|unsloth_.*"
)


def is_harmless(option: str) -> bool:
    """Whether a key of config.json never changes what a model computes in evaluation."""
    return option in _NAMES or _PATTERN.fullmatch(option) is not None


def says_nothing(option: str, value: object) -> bool:
    """Whether the value of a key that a family does not know turns nothing on.

    Null, false, 0, "", [] and {} do not; but "is_causal": false turns off what every decoder has.
    """
    if option == "is_causal":
        return value is None or bool(value)
    return value in (None, False, 0, "", [], {})
