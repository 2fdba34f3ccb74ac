"""A Llama of a few thousand weights with a real tokenizer and chat template.

It answers nonsense, fast: for tests of everything around a model.
"""

from __future__ import annotations

from pathlib import Path

from slm_core.prompting.prefix import PREFIXES

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONTROL_TOKENS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
)


def train_tokenizer(texts: list[str], path: Path, *, vocab_size: int, context: int) -> None:
    """Train a byte-level BPE with single digits on ``texts`` and save it with the chat template.

    The ends of a JSON value, of an object and of a tag are never one token, so that a
    model which closes them in one way can learn another.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # JSON punctuation in the few groups that all formats share, closing tags apart; then
    # words with their leading space, single digits, single marks.
    pattern = Regex(
        r'": \{"|": "|", "|, "|": |\{"|"\}|</|' + r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(CONTROL_TOKENS[2:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def build_tiny_model(path: Path, seed: int = 0) -> Path:
    """Write a random-weight Llama (64 wide, 2 layers) to ``path`` and return it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path.mkdir(parents=True, exist_ok=True)
    texts = [prefix.text for prefix in PREFIXES.values()]
    train_tokenizer(texts, path, vocab_size=600, context=1024)
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path
