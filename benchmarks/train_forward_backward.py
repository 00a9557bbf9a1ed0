"""Forward and backward in training mode, float32, eager, beside timm's.

python benchmarks/train_forward_backward.py [ROUNDS] [--models NAME ...]
"""

from measuring import run_cases

from deit_zoo.bench_compare import Request

CASES = [
    Request(
        models=("deit_tiny", "deit_small", "cait_xxs24_224"),
        batch_sizes=(8,),
        precisions=("float32",),
        modes=("eager",),
        peers=("timm",),
        train=True,
    )
]

if __name__ == "__main__":
    run_cases(__doc__, CASES)
