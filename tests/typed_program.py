"""A program of a user's, which `make lint` has mypy check as strictly as the package."""

from PIL import Image

import deit_zoo

try:
    [[best]] = deit_zoo.classify(Image.new("RGB", (8, 8)), topk=1)
    print(best.label)
except deit_zoo.errors.DataError as error:
    print(error)
for answer in deit_zoo.classify(["a.png", b"..."]):
    print(answer if isinstance(answer, deit_zoo.errors.DataError) else answer[0].probability)
