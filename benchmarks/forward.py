"""The plain forward pass in eval mode, float32, eager, beside timm's.

python benchmarks/forward.py [ROUNDS] [--models NAME ...]
"""

from measuring import run_cases

from deit_zoo.bench_compare import Request

CASES = [
    Request(
        models=("deit_tiny", "deit_small", "deit_base", "cait_xxs24_224"),
        batch_sizes=(1, 8),
        precisions=("float32",),
        modes=("eager",),
        peers=("timm",),
        memory=False,
    )
]

if __name__ == "__main__":
    run_cases(__doc__, CASES)
