"""CaiT beside timm's: float32 and bfloat16, each eager and compiled.

python benchmarks/cait.py [ROUNDS] [--models NAME ...]
"""

from measuring import run_cases

from deit_zoo.bench_compare import Request

CASES = [
    Request(
        models=("cait_xxs24_224", "cait_s24_224", "cait_xxs24_384"),
        batch_sizes=(8,),
        precisions=("float32", "bfloat16"),
        modes=("eager", "compiled"),
        peers=("timm",),
        memory=False,
    )
]

if __name__ == "__main__":
    run_cases(__doc__, CASES)
