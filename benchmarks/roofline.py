"""What a machine's arithmetic and memory allow: `python benchmarks/roofline.py` computes it and measures nothing.

The tables of docs/performance.md. A weight of a linear layer takes part in 2 operations at each position, and is read
once for a whole batch. So below some number of positions in a batch, the ridge, the time is that of reading weights,
and above it that of the operations.
"""

from __future__ import annotations

from typing import NamedTuple

STEPS = {  # mean of a step: positions read, those with the model's logits, those with the base's for the KL term
    "attribute loss": (131, 20, 0),  # 16 sentences
    "default recipe": (360, 360, 321),  # 16 sentences with two counterparts each, 2 stories of the base, 4 pairs
}
POSITIONS = {"StereoSet": 81_365, "CrowS-Pairs": 47_000, "stories": 12_612}
# Numbers written and read for each logit, by the size of one: the logit, twice for the sum of the softmax, once for the
# likeliest token; and, below float32, its copy in float32, which counts twice as much.
PASSES = {2: 1 + (1 + 2) + 2 * 2 + 1, 4: 1 + 2 + 1}
RANK = 8
GIB = 2**30


class Machine(NamedTuple):
    """Operations a second in a large matrix product, and bytes a second from memory."""

    operations: float
    bandwidth: float
    bytes_each: int  # of a number


class Model(NamedTuple):
    """A Llama."""

    width: int
    inner: int
    layers: int
    of_keys: int  # width of keys, and of values
    vocabulary: int
    tied: bool = False

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps: attention's four, and the feed-forward's three."""
        d, k, f = self.width, self.of_keys, self.inner
        return [(d, d), (d, k), (d, k), (d, d), (d, f), (d, f), (f, d)]

    @property
    def body(self) -> int:
        """Weights of the linear layers."""
        return self.layers * sum(a * b for a, b in self.linear)

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.width * self.vocabulary

    @property
    def adapter(self) -> int:
        """Weights of a LoRA on all linear layers."""
        return self.layers * sum(RANK * (a + b) for a, b in self.linear)

    @property
    def passing(self) -> int:
        """Numbers that a position reads and writes in all layers beside the products, where no two steps are fused."""
        d, k, f = self.width, self.of_keys, self.inner
        norms, additions = 2 * 2 * d, 2 * 3 * d
        products = sum(a + b for a, b in self.linear)
        turned, attended = 2 * (d + k), (d + 2 * k) + d
        gated = 2 * f + 3 * f
        return self.layers * (norms + additions + products + turned + attended + gated)


H200 = Machine(783e12, 4.8e12, 2)  # measured (8192 x 8192, bf16); data sheet
H200_FLOAT32 = Machine(51e12, 4.8e12, 4)
A_FLOAT32 = Machine(430e9, 20e9, 4)  # measured (2048 x 2048, two cores); assumed
A_BF16 = Machine(2825e9, 20e9, 2)
MACHINES = {"H200, bf16": H200, "H200, float32": H200_FLOAT32, "A, float32": A_FLOAT32, "A, bf16": A_BF16}
MODELS = {
    "SmolLM2-135M": Model(576, 1536, 30, 192, 49_152, tied=True),
    "Llama 1.2B": Model(2048, 8192, 16, 512, 128_256, tied=True),
    "Llama 8B": Model(4096, 14_336, 32, 1024, 128_256),
}
LARGE = Model(8192, 28_672, 80, 1024, 128_256)


def ridge(machine: Machine) -> float:
    """Positions of a batch at which reading a weight takes as long as its operations."""
    return machine.operations / machine.bandwidth * machine.bytes_each / 2


def scoring(model: Model, machine: Machine) -> tuple[float, float, float]:
    """Microseconds a position in a large batch: products, what passes through the layers, logits."""
    products = 2 * (model.body + model.head) / machine.operations
    passing = model.passing * machine.bytes_each
    logits = PASSES[machine.bytes_each] * model.vocabulary * machine.bytes_each
    return 1e6 * products, 1e6 * passing / machine.bandwidth, 1e6 * logits / machine.bandwidth


def step(model: Model, machine: Machine, kind: str, passes: int = 2) -> tuple[float, float]:
    """Seconds of a step's operations, and of reading the weights: forward and back; 3 passes recompute the forward."""
    positions, logits, base_logits = STEPS[kind]
    operations = 2 * (passes * model.body * positions + 2 * model.head * logits + model.head * base_logits)
    return operations / machine.operations, passes * (model.body + model.head) * machine.bytes_each / machine.bandwidth


def large() -> list[tuple[str, str]]:
    """A 70B Llama in 4 bits on one H200: memory, then seconds."""
    model, (positions, logits, _) = LARGE, STEPS["default recipe"]
    budget = int(4e9 // (2 * model.vocabulary))  # positions of a forward pass in scoring
    nf4 = model.body * (0.5 + 4 / 64)  # half a byte, and a float32 scale for 64 weights
    ends = 2 * model.head * 2
    layer = max(a * b for a, b in model.linear) * 2
    kept = positions * model.width * model.layers * 2
    recomputed = positions * (model.passing // model.layers) * 2
    of_logits = 3 * logits * model.vocabulary * 2
    adapter = model.adapter * 16
    training = nf4 + ends + adapter + kept + recomputed + layer + of_logits
    scored = nf4 + ends + layer + budget * (model.vocabulary + 3 * model.inner + 4 * model.width) * 2
    unpacked = (nf4 + 2 * 2 * model.body) / H200.bandwidth  # read packed, write bf16, read bf16
    operations, _ = step(model, H200, "default recipe", passes=3)
    a_position = 2 * (model.body + model.head) / H200.operations
    written = 96 * (128 * a_position + unpacked)
    file = 2 * (model.body + 2 * model.head)
    gigabytes = [
        ("linear layers in nf4, 0.5625 bytes a weight", nf4), ("embeddings and output layer in bf16", ends),
        (f"LoRA, {model.adapter / 1e6:.0f} M weights: float32, gradient and AdamW's two moments", adapter),
        ("activations kept for the backward pass, one a layer", kept), ("one layer's, computed again", recomputed),
        ("the largest matrix, unpacked to bf16", layer), ("logits, their gradient and a copy", of_logits),
        ("training in all", training), (f"scoring in all, {budget:,} positions at a time", scored),
        ("for comparison: weights in bf16", file),
    ]  # fmt: skip
    seconds = [
        ("a step's products", operations),
        ("unpacking the weights, three times a step", 3 * unpacked),
        ("64 steps of both", 64 * (operations + 3 * unpacked)),
        ("128 stories of 96 tokens, all at once", written),
        *((f"{name}, a model", positions * a_position) for name, positions in POSITIONS.items()),
        ("reading the file at 2 GB/s", file / 2e9),
    ]
    told = [(name, f"{value / 1e9:.2f} GB, {value / GIB:.2f} GiB") for name, value in gigabytes]
    return told + [(name, f"{value:.2f} s") for name, value in seconds]


def main() -> None:
    """Print all of it."""
    for name, machine in MACHINES.items():
        print(f"ridge of {name}: {ridge(machine):.0f} positions")
    for name, model in MODELS.items():
        print(f"\n{name}: body {model.body:,}, output layer {model.head:,}, adapter {model.adapter:,} weights")
        for where, machine in MACHINES.items():
            products, passing, logits = scoring(model, machine)
            print(f"  scoring, {where}: {products:.3g} us a position, layers {passing:.2g}, logits {logits:.2g}")
        for kind in STEPS:
            operations, reading = step(model, H200, kind)
            print(f"  {kind}, H200: products {1e3 * operations:.2f} ms a step, weights {1e3 * reading:.2f}")
        operations, _ = step(model, A_FLOAT32, "default recipe")
        print(f"  default recipe, A, float32: products {operations:.2f} s a step")
    print("\nLlama 70B in 4 bits on one H200")
    for name, value in large():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
