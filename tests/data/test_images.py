"""Images: where they may lie, what modes and damage they come with, and how they are fitted."""

from __future__ import annotations

import errno
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from transformers import SiglipImageProcessorPil

from basic_lite.console import quiet_libraries
from basic_lite.data import heic, images
from basic_lite.data import pixels as pixel_values
from basic_lite.data.images import ImageRef, check_image, locate, open_image, picture_key
from basic_lite.data.pictures import image_at
from basic_lite.data.pixel_table import processed, table_of
from basic_lite.data.pixels import fit, pixels
from basic_lite.data.problems import BadImage
from tests.support.data import processor, write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "pics" / "sub" / "in.png")
    write_image(tmp_path / "out.png")
    (tmp_path / "pics" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "pics" / "away").symlink_to(tmp_path)
    (tmp_path / "pics" / "near.png").symlink_to("sub/in.png")
    write_image(tmp_path / "pics-more" / "x.png")
    return tmp_path / "pics"


def test_paths_that_stay_inside(folder: Path) -> None:
    linked = ["link.png", "away/out.png", "near.png"]
    for name in ["sub/in.png", "./sub/../sub/in.png", str(folder / "sub/in.png"), *linked]:
        assert Path(locate(ImageRef(name, str(folder)))).is_file()
    assert open_image(ImageRef.of_file(folder.parent / "out.png")).size == (8, 6)
    # The image folder may itself be a link.
    (folder.parent / "alias").symlink_to(folder)
    alias = folder.parent / "alias"
    assert locate(ImageRef("sub/in.png", str(alias))) == str(alias / "sub/in.png")


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "sub/../../out.png",
        "OUT",
        "away/../../out.png",
        "../pics-more/x.png",
        "../missing.png",
        "..",
        "..\\out.png",
        "sub\\..\\..\\out.png",
    ],
)
@pytest.mark.parametrize("how", ["open", "exists", "none"])
def test_paths_that_leave_the_folder(folder: Path, name: str, how: Any) -> None:
    name = str(folder.parent / "out.png") if name == "OUT" else name
    with pytest.raises(BadImage, match="leaves the image folder"):
        check_image(ImageRef(name, str(folder)), how)


def test_names_in_another_unicode_form_or_case(folder: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "Bäume.png") for form in ("NFD", "NFC"))
    write_image(folder / apart)
    assert Path(locate(ImageRef(whole, str(folder)))).name in (apart, whole)
    if not (folder / "NEAR.PNG").exists():
        with pytest.raises(BadImage, match=r"there is 'near\.png' beside it"):
            locate(ImageRef("NEAR.PNG", str(folder)))


def test_a_picture_of_another_part_is_told(tmp_path: Path) -> None:
    """Pictures of one table lay in train/ and val/: those of val were to be fetched."""
    for name in ("train/a.png", "val/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for n in range(20):
        (tmp_path / f"log {n}.txt").touch()
        (tmp_path / f".hidden {n}").mkdir()
    with pytest.raises(BadImage, match=r"folder 'val' beside it: .* as in val/b\.png, and set image_dir") as told:
        check_image(ImageRef("b.png", str(tmp_path / "train")), "exists")
    assert str(told.value).endswith(f"to {tmp_path}")
    check_image(ImageRef("val/b.png", str(tmp_path)), "open")
    with pytest.raises(BadImage, match="fetch it, or correct image_dir"):
        check_image(ImageRef("c.png", str(tmp_path / "train")), "exists")


def test_missing_images(folder: Path) -> None:
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    for name in ["no.png", "sub/no/x.png", "dangling.png", "sub/in.png/x", "a" * 300 + ".png"]:
        with pytest.raises(BadImage, match="does not exist"):
            check_image(ImageRef(name, str(folder)), "exists")
    check_image(ImageRef("no.png", str(folder)), "none")
    with pytest.raises(BadImage, match=r"there is 'in\.png' beside it"):
        locate(ImageRef("sub/in.jpg", str(folder)))
    for name in ["http://host/a.png", "a\0.png"]:
        with pytest.raises(BadImage, match="not a file path"):
            locate(ImageRef(name, str(folder)))
    with pytest.raises(BadImage, match="not a file"):
        locate(ImageRef("sub", str(folder)))


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp"])
def test_damage_is_found_when_opened(tmp_path: Path, ending: str) -> None:
    whole = write_image(tmp_path / f"whole.{ending}", (64, 64)).read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>", "head": whole[:20]}.items():
        (tmp_path / f"{name}.{ending}").write_bytes(data)
        image = ImageRef(f"{name}.{ending}", str(tmp_path))
        check_image(image, "exists")
        with pytest.raises(BadImage, match=rf"{name}\.{ending}' can't be decoded"):
            check_image(image, "open")
        with pytest.raises(BadImage):
            open_image(ImageRef("(image column)", blob=data))


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    base = Image.fromarray(grey)
    images = {
        "L.png": base,
        "1.png": base.convert("1"),
        "LA.png": base.convert("LA"),
        "P.png": base.convert("P"),
        "RGBA.png": base.convert("RGBA"),
        "CMYK.jpg": base.convert("CMYK"),
        "I16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "I.tiff": Image.fromarray(grey.astype(np.int32) * 257),
        "F.tiff": Image.fromarray(grey.astype(np.float32) / 255),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        got = open_image(ImageRef(name, str(tmp_path)))
        assert got.mode == "RGB"
        if name not in ("1.png",):
            # No mode comes out white or black: 16-bit and float values are scaled.
            assert np.abs(np.asarray(got).astype(int)[..., 0] - grey).max() < 30, name
    transparent = base.convert("P")
    transparent.save(tmp_path / "PT.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(ImageRef("PT.png", str(tmp_path))).mode == "RGB"


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(ImageRef("turned.jpg", str(tmp_path))).size == (20, 40)


def test_fit() -> None:
    image = Image.new("RGB", (6, 2), (255, 0, 0))
    padded = fit(image, "pad", processor(8))
    mean = tuple(int(one * 255) for one in processor(8).image_mean)
    assert padded.size == (6, 6)
    assert [padded.getpixel((3, y)) for y in range(6)] == [mean, mean, (255, 0, 0), (255, 0, 0), mean, mean]
    assert fit(image.rotate(90, expand=True), "pad", processor(8)).getpixel((0, 3)) == mean
    square = fit(image, "square", processor(8))
    assert square.size == (8, 8)
    assert set(square.getdata() if not hasattr(square, "get_flattened_data") else square.get_flattened_data()) == {
        (255, 0, 0)
    }


@pytest.mark.parametrize("how", ["square", "pad"])
def test_pixels_show_the_whole_picture(tmp_path: Path, how: Any) -> None:
    """Both ends of a wide picture are there after the processor: nothing is cropped away."""
    wide = np.zeros((8, 64, 3), dtype=np.uint8)
    wide[:, :8], wide[:, -8:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    write_image(tmp_path / "tall.png", (1, 30))
    refs = (ImageRef("wide.png", str(tmp_path)), ImageRef("tall.png", str(tmp_path)))
    for made in (processor(16), SiglipImageProcessorPil(size={"height": 16, "width": 16})):
        out = pixels(refs, made, how)
        assert out.shape == (2, 3, 16, 16)
        assert out.dtype == torch.float32
        # Red at the left edge, blue at the right one.
        middle = out[0, :, 8]
        assert middle[0, 0] > middle[2, 0]
        assert middle[2, -1] > middle[0, -1]
    if how == "pad":
        assert out[1, :, :, 0].abs().max() < 0.02


@pytest.mark.parametrize("how", ["square", "pad"])
@pytest.mark.parametrize("side", [9, 16, 30])
def test_pixels_are_the_processors_bit_for_bit(tmp_path: Path, how: Any, side: int) -> None:
    """Enlarged and made smaller; a table of 256 columns takes several pictures of 9², one of 16² or 30²."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    ref = ImageRef("a.png", str(tmp_path))
    for made in (processor(side), SiglipImageProcessorPil(size={"height": side, "width": side})):
        assert table_of(made) is not None
        whole = processed(fit(open_image(ref), how, made), made)
        assert whole.unique().numel() > 20 and pixels((ref, ref), made, how).equal(torch.stack([whole, whole]))


def test_a_large_jpeg_may_be_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    """The same each time, close to the whole, with twice the encoder's side at least; only JPEGs change."""
    coarse = np.random.default_rng(2).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((640, 512), Image.Resampling.BICUBIC)
    for name in ("a.jpg", "a.png"):
        photo.save(tmp_path / name, quality=95)
    made = processor(60)
    for name, sizes in {"a.jpg": [(160, 128), (320, 256), (640, 512)], "a.png": [(640, 512)] * 3}.items():
        ref = ImageRef(name, str(tmp_path))
        assert [open_image(ref, least=least).size for least in (128, 129, 257)] == sizes
        whole = pixels((ref,), made, "pad")
        drafted = pixels((ref,), made, "pad", draft=True)  # the side is 60, so a quarter has enough
        assert drafted.equal(pixels((ref,), made, "pad", draft=True))
        grey_levels = (drafted - whole).abs() * 255 * max(made.image_std)
        assert grey_levels.mean() < 1 and drafted.equal(whole) == (name == "a.png")


def test_a_processor_that_does_more_has_no_table(tmp_path: Path) -> None:
    """It crops the middle, takes no mean apart from the picture's own, or gives another size: it is asked each time."""
    write_image(tmp_path / "a.png", (40, 40))
    ref = ImageRef("a.png", str(tmp_path))
    cropping = SiglipImageProcessorPil(
        size={"height": 20, "width": 20}, do_center_crop=True, crop_size={"height": 16, "width": 16}
    )

    class Centred(SiglipImageProcessorPil):
        def normalize(self, image: Any, *_: Any, **__: Any) -> Any:
            return image - image.mean()

    for made, size in ((cropping, 16), (Centred(size={"height": 16, "width": 16}), 16)):
        assert table_of(made) is None
        out = pixels((ref,), made, "square")
        assert out.shape == (1, 3, size, size) and out[0].equal(processed(open_image(ref), made))


@pytest.mark.parametrize("computer", ["", "localhost"])
def test_the_address_of_a_file_is_its_path(computer: str) -> None:
    assert Path(image_at(f"file://{computer}/my%20photos/a.png", "").name).as_posix() == "/my photos/a.png"


def test_a_doubled_folder_gets_a_hint(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png")
    with pytest.raises(BadImage, match=f"it is in {tmp_path}: set image_dir"):
        locate(ImageRef("photos/a.png", str(tmp_path / "photos")))


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone.png")
    with pytest.raises(
        BadImage, match=r"does not exist in .*; it is a link to 'gone\.png', where nothing is: correct it"
    ):
        locate(ImageRef("a.png", str(tmp_path)))


def test_more_pixels_than_pil_reads_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", (9, 9))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadImage, match=r"81 pixels.*; save it with fewer pixels, or leave the record out"):
        open_image(ImageRef("a.png", str(tmp_path)))


def test_a_large_picture_is_read_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", (4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # PIL warns of more, and refuses twice as many
    with warnings.catch_warnings(record=True) as seen:
        quiet_libraries()
        assert open_image(ImageRef("a.png", str(tmp_path))).size == (4, 4)
    assert seen == []


def test_links_to_one_file_are_one_picture(tmp_path: Path) -> None:
    """So that `data.held_out` has them on one side."""
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    keys = {picture_key(ImageRef(name, str(tmp_path)), as_it_is=False) for name in ("a.png", "b.png")}
    assert len(keys) == 1


@pytest.mark.parametrize("ending", ["webp", "avif", "heic"])
def test_newer_formats(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (64, 32), (200, 30, 30)).save(tmp_path / f"a.{ending}")
    got = open_image(ImageRef(f"a.{ending}", str(tmp_path)))
    assert got.size == (64, 32)
    assert np.abs(np.asarray(got.getpixel((5, 5))) - (200, 30, 30)).max() < 12


def test_a_telephones_picture_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heic, "register_heic", lambda: False)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadImage, match="pip install pillow-heif"):
        open_image(ImageRef("a.HEIC", str(tmp_path)))


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (7, 240), (120, 33)])
@pytest.mark.parametrize("how", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_large_square_of_padding_is_never_made(
    size: tuple[int, int], how: Image.Resampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resized along its length before it is padded, a picture is the same but for rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    made, refs = processor(32), (ImageRef("a.png", str(tmp_path)),)
    made.resample = how
    whole = pixels(refs, made, "pad")
    monkeypatch.setattr(pixel_values, "_wasteful", lambda width, height: True)
    level = 1 / 255 / min(made.image_std)
    assert (pixels(refs, made, "pad") - whole).abs().max() <= 1.01 * level


def test_which_pictures_are_padded_whole() -> None:
    """Photographs whose square takes up to 400 MB; no strips whose square would take more than 64 MB."""
    for size in [(4000, 6000), (9000, 10_000), (500, 4000), (1, 4000)]:
        assert not pixel_values._wasteful(*size), size
    for size in [(1, 30_000), (4001, 900), (20_000, 3_000), (9_000, 12_000)]:
        assert pixel_values._wasteful(*size), size
    assert fit(Image.new("RGB", (1, 30_000)), "pad", processor(32)).size == (32, 32)


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"BUFR", b"GRIB"]
)
def test_no_program_is_started_for_a_picture(head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    (tmp_path / "a.jpg").write_bytes(head + b"\0" * 64)
    with pytest.raises(BadImage, match="cannot identify"):
        open_image(ImageRef("a.jpg", str(tmp_path)))


@pytest.mark.parametrize(
    "head, said",
    [
        (b"", "(the file is empty); fetch it again"),
        (
            b"\n<!DOCTYPE HTML><title>404",
            "(it is a web page, as a server sends it in place of a picture that it doesn't",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid", "(it is a pointer of Git LFS); fetch the picture itself"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "(it is an SVG drawing); save it as PNG"),
        (b"%PDF-1.7", "(it is a PDF); save its pages as JPEG"),
        (b"PK\x03\x04", "(it is a zip archive); unpack it first"),
        (b"hello", "(cannot identify image file); fetch it again"),
    ],
)
def test_what_a_file_is_that_is_no_picture_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, said: str
) -> None:
    monkeypatch.setattr(heic, "register_heic", lambda: False)
    # A name that ends as HEIC doesn't make it one.
    (tmp_path / "a.heic").write_bytes(head)
    for image in (ImageRef("a.heic", str(tmp_path)), ImageRef("a.heic", blob=head)):
        with pytest.raises(BadImage) as refused:
            check_image(image, "open")
        text = str(refused.value)
        assert f"image 'a.heic' can't be decoded {said}" in text and str(tmp_path) not in text


def test_a_picture_that_must_not_be_read_is_told_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    write_image(tmp_path / "a.png")
    monkeypatch.setattr(images.Image, "open", refuse)
    with pytest.raises(BadImage, match=r"'a\.png' can't be decoded \(Permission denied\); let this user read it, or"):
        check_image(ImageRef("a.png", str(tmp_path)), "open")


def test_a_telephones_picture_that_was_renamed_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heic, "register_heic", lambda: False)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(BadImage, match="HEIC needs pillow-heif: pip install pillow-heif"):
        check_image(ImageRef("a.jpg", str(tmp_path)), "open")


@pytest.mark.parametrize("name", ["C:\\Users\\me\\a b.png", "/home/me/a b.png", "old/pictures/a b.png"])
def test_a_whole_path_whose_file_is_in_the_folder_gets_a_hint(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a b.png")
    with pytest.raises(BadImage, match=r"; 'a b\.png' is in that folder: give the name alone, without the folders"):
        locate(ImageRef(name, str(tmp_path)))
    with pytest.raises(BadImage, match=r"; (fetch it, or correct image_dir|move it inside)"):
        locate(ImageRef(name.replace("a b", "c"), str(tmp_path)))
