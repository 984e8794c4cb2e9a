"""Makes a chat model of two layers, whose weights are random."""

import json

import numpy as np
from safetensors.numpy import save_file

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "What is the capital of France? The capital of France is Paris. Hello, how are you? I'm fine, "
    "thank you; and you? It was été, naïve, and 12 or 345 things. Привет, как дела? 🇫🇷 🙂"
)


class Tiny:
    """Weights by Hugging Face's names, a tokenizer of GPT-2's kind, and ways to write them."""

    def __init__(self, width=64, heads=4, key_heads=2, layers=2, hidden=96, seed=0):
        self.width, self.heads, self.key_heads = width, heads, key_heads
        self.layers, self.hidden, self.head = layers, hidden, width // heads
        self.context, self.base, self.eps = 256, 10_000.0, 1e-5
        self.tokenizer = byte_pairs()
        self.vocabulary = self.tokenizer.get_vocab_size()
        rng = np.random.default_rng(seed)
        keys = key_heads * self.head
        shapes = {"embed_tokens": (self.vocabulary, width), "norm": (width,)}
        for i in range(layers):
            shapes |= {
                f"layers.{i}.input_layernorm": (width,),
                f"layers.{i}.self_attn.q_proj": (width, width),
                f"layers.{i}.self_attn.k_proj": (keys, width),
                f"layers.{i}.self_attn.v_proj": (keys, width),
                f"layers.{i}.self_attn.o_proj": (width, width),
                f"layers.{i}.post_attention_layernorm": (width,),
                f"layers.{i}.mlp.gate_proj": (hidden, width),
                f"layers.{i}.mlp.up_proj": (hidden, width),
                f"layers.{i}.mlp.down_proj": (width, hidden),
            }
        self.weights = {
            f"model.{name}.weight": (
                rng.normal(size=shape) * (0.2 if len(shape) > 1 else 0.1) + (len(shape) == 1)
            ).astype(np.float32)
            for name, shape in shapes.items()
        }

    def config(self):
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "vocab_size": self.vocabulary, "hidden_size": self.width, "rope_theta": self.base,
            "intermediate_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.key_heads,
            "max_position_embeddings": self.context, "rms_norm_eps": self.eps,
            "tie_word_embeddings": True, "torch_dtype": "float32",
            "bos_token_id": self.number("<|im_start|>"), "eos_token_id": self.number("<|im_end|>"),
        }  # fmt: skip

    def number(self, token):
        return self.tokenizer.token_to_id(token)

    def folder(self, place, weights=None, **changed):
        """Write a folder in Hugging Face's form."""
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(self.config() | changed))
        self.tokenizer.save(str(place / "tokenizer.json"))
        about = {"chat_template": TEMPLATE, "bos_token": "<|im_start|>",
                 "eos_token": {"content": "<|im_end|>"}}  # fmt: skip
        (place / "tokenizer_config.json").write_text(json.dumps(about))
        save_file(self.weights if weights is None else weights, place / "model.safetensors")
        return place

    def gguf(self, path, kind="F32", architecture="llama", write=lambda writer: None):
        """Write a GGUF file as llama.cpp's converter does."""
        import gguf

        writer = gguf.GGUFWriter(str(path), architecture)
        writer.add_name("Tiny")
        writer.add_block_count(self.layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(self.hidden)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_heads)
        writer.add_rope_freq_base(self.base)
        writer.add_rope_dimension_count(self.head)
        writer.add_layer_norm_rms_eps(self.eps)
        described = json.loads(self.tokenizer.to_str())["model"]
        texts = sorted(described["vocab"], key=described["vocab"].get)
        special = {"<|im_start|>", "<|im_end|>"}
        texts += sorted(special - set(texts), key=self.number)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(texts)
        writer.add_token_types([3 if text in special else 1 for text in texts])
        merges = [m if isinstance(m, str) else " ".join(m) for m in described["merges"]]
        writer.add_token_merges(merges)
        writer.add_bos_token_id(self.number("<|im_start|>"))
        writer.add_eos_token_id(self.number("<|im_end|>"))
        writer.add_chat_template(TEMPLATE)
        write(writer)
        for name, values in self.weights.items():
            short = gguf_name(name)
            heads = {"attn_q": self.heads, "attn_k": self.key_heads}.get(short.split(".")[-2])
            values = permuted(values, heads) if heads else values
            if values.ndim == 1 or kind == "F32":
                writer.add_tensor(short, values)
            else:
                code = gguf.GGMLQuantizationType[kind]
                data = gguf.quants.quantize(values, code)
                writer.add_tensor(short, data, raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


NAMES = {
    "embed_tokens": "token_embd", "layers.": "blk.", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    """What llama.cpp calls a weight."""
    short = name.removeprefix("model.")
    for ours, theirs in NAMES.items():
        short = short.replace(ours, theirs)
    return "output_norm.weight" if short == "norm.weight" else short


def permuted(values, heads):
    """How llama.cpp's converter lays out the rows of q and k."""
    pairs = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def byte_pairs():
    """A tokenizer of GPT-2's kind, with SmolLM's cuts, learned from a line of text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    found.train_from_iterator([TEXT], trainer)
    return found
