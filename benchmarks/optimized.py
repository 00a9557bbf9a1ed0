"""deit_zoo.optimize in bfloat16 beside timm, eager and compiled and frozen, and OpenVINO.

python benchmarks/optimized.py [ROUNDS] [--models NAME ...]
"""

from measuring import run_cases

from deit_zoo.bench_compare import Request

CASES = [
    Request(
        models=("deit_small", "deit_base"),
        batch_sizes=(1, 8),
        precisions=("bfloat16",),
        modes=("optimized",),
        peers=("timm", "openvino"),
        memory=False,  # each would be compiled once more
    )
]

if __name__ == "__main__":
    run_cases(__doc__, CASES)
