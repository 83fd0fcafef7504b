"""What paged-backend is about, in a few sentences each: attention, cache, scheduler, hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Concept:
    """One idea: its names (used in questions), what it is, how it works and why one wants it."""

    names: tuple[str, ...]
    what: str
    how: str
    why: str


def _c(names: str, what: str, how: str, why: str) -> Concept:
    return Concept(tuple(names.split("|")), what, how, why)


CONCEPTS: Final = (
    _c(
        "paged attention|PagedAttention|the paged attention algorithm",
        (
            "Paged attention is a way to keep the keys and values of a language model in small blocks of "
            "memory, like the pages of an operating system."
        ),
        (
            "The KV cache is cut into blocks of fixed size. A block table says which blocks belong to a "
            "sequence, and the attention kernel reads the keys and values through that table."
        ),
        "It wastes very little memory, so that many more requests can run at the same time.",
    ),
    _c(
        "the KV cache|KV cache|a KV cache|the key-value cache|kv caching",
        "The KV cache keeps the keys and values of all tokens that the model has already seen.",
        (
            "For each new token, the model computes one key and one value per layer, adds them to the "
            "cache and reads all the earlier ones from it."
        ),
        "Without it, the model would have to compute every earlier token again for each new token.",
    ),
    _c(
        "continuous batching|in-flight batching|iteration-level scheduling",
        "Continuous batching means that requests join and leave the running batch at every step.",
        "After each step, finished requests leave the batch and waiting requests take their place at once.",
        ("No request has to wait until a whole batch is done, so the machine is always busy and answers come sooner."),
    ),
    _c(
        "a block table|the block table|block tables",
        "A block table is a list that says in which blocks of memory the tokens of a sequence are stored.",
        ("Entry number i of the table names the block that holds the tokens of the i-th block of the sequence."),
        "It lets the blocks of a sequence lie anywhere in memory, so no large free region is needed.",
    ),
    _c(
        "a block|a KV block|a cache block|the block size",
        "A block is a small piece of the KV cache that holds the keys and values of 16 tokens by default.",
        "Blocks are handed out one at a time while a sequence grows, and they are freed when it ends.",
        "Small blocks waste little memory, because only the last block of a sequence can be partly empty.",
    ),
    _c(
        "prefix caching|the prefix cache|automatic prefix caching|a prefix cache",
        "Prefix caching means that requests which begin with the same text share the blocks of that text.",
        (
            "Full blocks are indexed by a hash of their tokens. When a new prompt begins with the same "
            "tokens, its blocks are found and used again."
        ),
        "The shared part of the prompt is not computed again, so the first token comes much faster.",
    ),
    _c(
        "copy-on-write|copy on write|COW",
        "Copy-on-write means that a shared block is copied only when one of its owners wants to change it.",
        (
            "Each block has a reference count. If a sequence writes to a block with more than one owner, "
            "it gets its own copy first."
        ),
        "Several samples of one prompt can share memory until they become different.",
    ),
    _c(
        "preemption|preempting a request",
        "Preemption means that a running request is paused so that others can go on when memory is short.",
        (
            "The request with the lowest priority gives back its blocks. Later it is computed again or "
            "its blocks are swapped in, and it goes on where it stopped."
        ),
        "Nothing is lost when the blocks run out: the request only takes longer.",
    ),
    _c(
        "swapping|KV cache swapping|swapping blocks",
        "Swapping means that blocks of the KV cache are moved to the memory of the host and back.",
        ("The blocks of a preempted request are copied to the host, and they are copied back when there is room."),
        "It can be cheaper than computing the keys and values again.",
    ),
    _c(
        "chunked prefill|splitting the prefill",
        "Chunked prefill means that a long prompt is computed in several pieces.",
        "In each step, the scheduler takes only as many tokens of the prompt as fit into the token budget.",
        "A long prompt does not block the other requests, so their tokens keep coming smoothly.",
    ),
    _c(
        "the prefill|prefill|the prefill phase",
        "The prefill is the part of a request in which the model reads the prompt.",
        ("All tokens of the prompt go through the model together, and their keys and values are written to the cache."),
        "After the prefill, the first new token can be sampled.",
    ),
    _c(
        "decoding|the decode phase|decode",
        "Decoding is the part of a request in which the model makes new tokens, one at a time.",
        "In each step, the last token goes through the model, and the next token is sampled from the result.",
        "Each token depends on the one before it, so decoding goes step by step.",
    ),
    _c(
        "the scheduler|a scheduler",
        "The scheduler decides which requests compute how many tokens in the next step.",
        "It spends one token budget: first on the running requests, then on the waiting ones.",
        "It keeps the machine busy and treats the requests fairly.",
    ),
    _c(
        "a token|tokens|a language model token",
        "A token is a small piece of text, such as a word or a part of a word.",
        "The tokenizer splits the text into tokens, and each token has a number.",
        "A language model reads and writes tokens instead of letters.",
    ),
    _c(
        "a tokenizer|the tokenizer|tokenization",
        "A tokenizer turns text into numbers called tokens, and back again.",
        "It splits the text into the pieces of its vocabulary and gives each piece its number.",
        "The model can only work with numbers, so each text must be turned into tokens first.",
    ),
    _c(
        "attention|the attention mechanism|self-attention",
        "Attention lets each token of a text look at the other tokens and take what is useful from them.",
        (
            "Each token has a query, a key and a value. The query is compared with all keys, and the "
            "values are mixed by how well they match."
        ),
        "It lets the model use words from far back in the text.",
    ),
    _c(
        "grouped-query attention|GQA|grouped query attention",
        "Grouped-query attention means that several query heads share one key and value head.",
        "The query heads are put into groups, and each group reads the same keys and values.",
        "The KV cache becomes smaller, so more requests fit into memory.",
    ),
    _c(
        "a language model|language models|an LLM|a large language model",
        "A language model is a program that predicts the next token of a text.",
        ("It reads the tokens so far, computes a probability for each possible next token, and one of them is chosen."),
        "It can write text, answer questions and help with many tasks.",
    ),
    _c(
        "a transformer|the transformer|transformers",
        "A transformer is a neural network made of layers with attention and a small feed-forward network.",
        ("Each layer first mixes the tokens with attention and then changes each token with the feed-forward network."),
        "It can be trained on a lot of text at once and works very well for language.",
    ),
    _c(
        "speculative decoding|speculation",
        (
            "Speculative decoding means that a cheap method guesses several tokens, and the model checks "
            "them all at once."
        ),
        "The guessed tokens go through the model in one step. Those that agree with the model are kept.",
        "Several tokens can be made in one step, and the text stays the same.",
    ),
    _c(
        "quantization|a quantized model|weight quantization",
        "Quantization means that the weights of a model are stored with fewer bits.",
        "The weights are rounded to small integers, and a scale for each group is kept.",
        "The model needs less memory and often runs faster.",
    ),
    _c(
        "TorchServe|torch serve",
        "TorchServe is a server for PyTorch models. It takes requests over HTTP and gives them to a handler.",
        (
            "A model is packed into an archive with a handler, and the workers of TorchServe load it and "
            "answer requests."
        ),
        "It makes it easy to serve PyTorch models with logging, metrics and scaling.",
    ),
    _c(
        "BentoML|Bento ML|bento",
        "BentoML is a framework for turning models into services in Python.",
        ("You write a service class with API methods, and BentoML serves them over HTTP and can build a container."),
        "It makes it easy to go from a model to a service in production.",
    ),
    _c(
        "paged-backend|paged backend|this engine|the paged-backend project",
        (
            "paged-backend is an engine for serving language models inside TorchServe and BentoML, with a "
            "paged KV cache."
        ),
        ("It plans each step, runs the model on the paged cache and sends the tokens back as soon as they are made."),
        "You keep the model server that you have, and get paged attention and continuous batching.",
    ),
    _c(
        "vLLM|the vLLM project",
        "vLLM is a well-known engine for serving language models. It made paged attention popular.",
        "It keeps the KV cache in blocks and adds requests to the running batch at every step.",
        "It serves many requests at the same time on one GPU.",
    ),
    _c(
        "the temperature|temperature|sampling temperature",
        "The temperature says how random the choice of the next token is.",
        "The scores of the tokens are divided by the temperature before the probabilities are computed.",
        "With 0 the answer is always the same. With higher values it is more varied.",
    ),
    _c(
        "top-p sampling|top-p|nucleus sampling|top p",
        "Top-p sampling keeps only the most likely tokens whose probabilities add up to p.",
        "The tokens are sorted by probability, and the tail beyond p is cut off.",
        "It avoids very unlikely words but keeps the text varied.",
    ),
    _c(
        "top-k sampling|top-k|top k",
        "Top-k sampling keeps only the k most likely tokens.",
        "The next token is drawn from the k tokens with the highest scores.",
        "It avoids very unlikely words.",
    ),
    _c(
        "greedy decoding|greedy sampling|greedy search",
        "Greedy decoding always takes the most likely next token.",
        "In each step, the token with the highest score is chosen.",
        "The answer is always the same for the same prompt.",
    ),
    _c(
        "beam search|beams",
        "Beam search keeps several of the best texts at the same time and returns the best one.",
        "In each step, every beam is extended by its best tokens, and only the best beams are kept.",
        "It can find a text with a higher total probability than greedy decoding.",
    ),
    _c(
        "streaming|token streaming|a streamed answer",
        "Streaming means that the tokens are sent to the user as soon as they are made.",
        "The server sends small events over one open connection, one for each new piece of text.",
        "The user can begin to read long before the answer is complete.",
    ),
    _c(
        "throughput|the throughput of a server",
        "Throughput is the number of tokens or requests that a server finishes in a second.",
        "It is measured by counting the tokens of all requests and dividing by the time.",
        "A higher throughput means that the same machine can serve more users.",
    ),
    _c(
        "latency|the latency of a request|time to first token",
        (
            "Latency is the time that a user waits for an answer. The time to the first token is an "
            "important part of it."
        ),
        "It is measured from the moment the request is sent until the token arrives.",
        "A low latency makes a service feel fast.",
    ),
    _c(
        "a GPU|GPUs|the GPU",
        "A GPU is a chip that does many simple computations at the same time.",
        "It has thousands of small cores and very fast memory.",
        "Language models run much faster on it.",
    ),
    _c(
        "JSON|the JSON format",
        "JSON is a simple text format for data, with objects, lists, strings and numbers.",
        "An object is written in curly brackets as pairs of a key and a value.",
        "Programs in all languages can read and write it.",
    ),
    _c(
        "an API|APIs|an API endpoint",
        "An API is a way for programs to talk to each other.",
        "One program sends a request in an agreed form, and the other one sends a response.",
        "It lets you use a service without knowing how it works inside.",
    ),
    _c(
        "LoRA|a LoRA adapter|low-rank adaptation",
        "LoRA is a way to fine-tune a model by training two small matrices for each large one.",
        "The product of the two small matrices is added to the large one, which stays as it is.",
        "An adapter is small, so that many of them can be served with one model.",
    ),
    _c(
        "a hash|hashing|a hash function",
        "A hash is a short number that is computed from data of any length.",
        "The same data always gives the same hash, and different data almost always gives a different one.",
        "It makes it fast to find out whether something has been seen before.",
    ),
    _c(
        "memory fragmentation|fragmentation",
        "Memory fragmentation means that free memory is split into pieces that are too small to use.",
        "It happens when regions of different sizes are taken and freed again and again.",
        "Paged attention avoids it, because all blocks have the same size.",
    ),
)

# Two-sided questions: wordings separated by "|", the last one held out, and the answer.
COMPARISONS: Final = (
    (
        (
            "What is the difference between prefill and decode?|How do prefill and decode differ?"
            "|Compare prefill and decode."
        ),
        "The prefill reads the whole prompt at once, and decoding makes one new token at a time.",
    ),
    (
        (
            "What is the difference between static and continuous batching?"
            "|How does continuous batching differ from static batching?"
            "|Compare static and continuous batching."
        ),
        (
            "A static batch waits until all its requests are done. With continuous batching, requests "
            "join and leave at every step."
        ),
    ),
    (
        (
            "What is the difference between latency and throughput?|How do latency and throughput differ?"
            "|Compare latency and throughput."
        ),
        "Latency is how long one user waits, and throughput is how much work the server does in a second.",
    ),
    (
        (
            "What is the difference between TorchServe and BentoML?|How do TorchServe and BentoML differ?"
            "|Compare TorchServe and BentoML."
        ),
        "TorchServe serves PyTorch models from archives, and BentoML turns Python classes into services.",
    ),
    (
        (
            "What happens when the KV cache is full?|What happens when there are no free blocks?"
            "|What does the engine do when memory runs out?"
        ),
        ("When no block is free, the engine preempts the request with the lowest priority and resumes it later."),
    ),
    (
        "How many tokens are in a block?|How many tokens does a block hold?|How large is a block by default?",
        "A block holds 16 tokens by default.",
    ),
    (
        "How can I make my server faster?|How do I speed up inference?|How can I make inference faster?",
        "Use continuous batching, prefix caching and quantization, and give the KV cache enough memory.",
    ),
    (
        "How do I save memory?|How can I use less memory?|What helps if I run out of memory?",
        "Use a quantized model, a shorter context or fewer requests at the same time.",
    ),
)
