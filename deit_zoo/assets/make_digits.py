"""Makes `digits.png` from scikit-learn's copy: `python -m deit_zoo.assets.make_digits`.

One sheet that any viewer opens: 60 digits a row, 8x8 pixels each, in the data's own order; labels,
licence and source stand in its text chunks.
"""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

COLUMNS, SIDE, LEVELS = 60, 8, 16


def main() -> None:
    """Write the sheet beside this file."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * SIDE, rows * SIDE))
    for number, image in enumerate(images):
        pixels = bytes(round(ink * 255 / LEVELS) for ink in image)
        row, column = divmod(number, COLUMNS)
        sheet.paste(Image.frombytes("L", (SIDE, SIDE), pixels), (column * SIDE, row * SIDE))
    text = PngInfo()
    text.add_text("Title", "Optical Recognition of Handwritten Digits, test part, 8x8 pixels")
    text.add_text("Author", "E. Alpaydin, C. Kaynak")
    text.add_text("Source", "UCI Machine Learning Repository, doi:10.24432/C50P49; scikit-learn")
    text.add_text("Copyright", "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/")
    text.add_text("Labels", "".join(map(str, labels)))
    sheet.save(Path(__file__).with_name("digits.png"), pnginfo=text, optimize=True)


if __name__ == "__main__":
    main()
