use std::io::Read;

use super::super::decode::resize::{resize, to_channels};
use super::*;

fn header(bytes: &[u8], limits: &DecodeLimits) -> Result<decode::Header, DecodeError> {
    Decoder::new(*limits).header(bytes)
}

fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    Decoder::new(*limits).decode(bytes)
}

fn gunzip(path: PathBuf) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn png_of_every_colour_type_equals_pillow() {
    let images = [("rgb", 3), ("grey", 1), ("rgba", 3), ("palette", 3), ("grey-alpha", 1), ("bits", 1), ("grey16", 1)];
    for (name, channels) in images {
        let bytes = std::fs::read(fixture(&format!("images/{name}.png"))).unwrap();
        let image = decode(&bytes, &DecodeLimits::default()).unwrap();
        let head = header(&bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((image.width, image.height, image.channels), (32, 32, channels), "{name}");
        assert_eq!((head.width, head.height, head.channels), (32, 32, channels), "{name}");
        assert!(image.pixels == gunzip(fixture(&format!("images/{name}.raw"))), "{name}");
    }
}

#[test]
fn jpeg_of_every_kind_equals_pillow() {
    for (name, channels) in [("rgb", 3), ("grey", 1), ("progressive", 3), ("cmyk", 3)] {
        let bytes = std::fs::read(fixture(&format!("images/{name}.jpg"))).unwrap();
        let image = decode(&bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((image.width, image.height, image.channels), (32, 32, channels), "{name}");
        assert!(image.pixels == gunzip(fixture(&format!("images/{name}-jpg.raw"))), "{name}");
    }
}

#[test]
fn jpeg_on_which_decoders_differ_equals_pillow() {
    let folder = fixture("../jpeg");
    for (name, size) in [
        ("checker88_noninter", (88, 88)),
        ("noninter_1x2", (75, 59)),
        ("noninter_2x2", (75, 59)),
        ("partial_inter_420", (75, 59)),
        ("rst_noninter_420", (75, 59)),
        ("ycc_app14_0_jfif", (75, 59)),
        ("exif6", (59, 75)),
    ] {
        let bytes = std::fs::read(folder.join(format!("{name}.jpg"))).unwrap();
        let image = decode(&bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((image.width, image.height, image.channels), (size.0, size.1, 3), "{name}");
        assert!(image.pixels == gunzip(folder.join(format!("{name}.raw"))), "{name}");
    }
    let stored = Decoder { limits: DecodeLimits::default(), exif_orientation: false };
    let bytes = std::fs::read(folder.join("exif6.jpg")).unwrap();
    let image = stored.decode(&bytes).unwrap();
    assert_eq!((image.width, image.height, stored.header(&bytes).unwrap().width), (75, 59, 75));
    let cut = std::fs::read(folder.join("cut70_eoi.jpg")).unwrap();
    let error = decode(&cut, &DecodeLimits::default()).unwrap_err().to_string();
    assert_eq!(error, "corrupt jpeg image: the data of a scan is damaged or ends early");
}

/// A folder of one class whose files are `grey` grey images and then one in colour.
fn nearly_grey(grey: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("train/cat");
    std::fs::create_dir_all(&class).unwrap();
    for number in 0..grey {
        std::fs::hard_link(fixture("images/grey.png"), class.join(format!("{number:05}.png")))
            .or_else(|_| std::fs::copy(fixture("images/grey.png"), class.join(format!("{number:05}.png"))).map(drop))
            .unwrap();
    }
    std::fs::copy(fixture("images/rgb.jpg"), class.join("x.jpg")).unwrap();
    folder
}

#[test]
fn one_coloured_file_among_thousands_makes_the_data_coloured() {
    let folder = nearly_grey(4500);
    let data = spec(folder.path(), FormatName::AUTO, Split::Train);
    let dataset = open(&data).unwrap();
    assert_eq!((dataset.info().channels, dataset.info().image_size), (3, Some((32, 32))));
    assert!(dataset.sample(4500).unwrap().image.pixels == gunzip(fixture("images/rgb-jpg.raw")));
    // Without it the data is grey, unless colour is wanted; and a file that turns coloured later is not made grey in
    // silence.
    std::fs::remove_file(folder.path().join("train/cat/x.jpg")).unwrap();
    let dataset = open(&data).unwrap();
    assert_eq!(dataset.info().channels, 1);
    let wanted = open(&DatasetSpec { channels: Some(3), ..data }).unwrap();
    assert_eq!((wanted.info().channels, wanted.sample(7).unwrap().image.channels), (3, 3));
    let path = folder.path().join("train/cat/00007.png");
    std::fs::remove_file(&path).unwrap();
    std::fs::copy(fixture("images/rgb.png"), &path).unwrap();
    let error = dataset.sample(7).unwrap_err().to_string();
    assert!(
        error.ends_with("00007.png: sample 7: is in colour, while all images were grey at the beginning"),
        "{error}"
    );
}

#[test]
fn one_image_of_another_size_is_seen_wherever_it_is() {
    let folder = nearly_grey(1500);
    let class = folder.path().join("train/cat");
    let image = Image { width: 31, height: 32, channels: 1, pixels: vec![0; 31 * 32] };
    std::fs::write(class.join("y.png"), super::super::convert::encode_png(&image).unwrap()).unwrap();
    let data = spec(folder.path(), FormatName::AUTO, Split::Train);
    assert_eq!(open(&data).unwrap().info().image_size, None);
    std::fs::remove_file(class.join("y.png")).unwrap();
    assert_eq!(open(&data).unwrap().info().image_size, Some((32, 32)));
}

#[test]
fn a_folder_of_webp_alone_is_recognised_and_names_of_files_may_lie() {
    let folder = tempfile::tempdir().unwrap();
    let mut webp = std::io::Cursor::new(Vec::new());
    let rgb = golden();
    image::codecs::webp::WebPEncoder::new_lossless(&mut webp)
        .encode(&rgb, 32, 32, image::ExtendedColorType::Rgb8)
        .unwrap();
    for class in ["a", "b"] {
        std::fs::create_dir_all(folder.path().join("train").join(class)).unwrap();
        std::fs::write(folder.path().join("train").join(class).join("0.WEBP"), webp.get_ref()).unwrap();
    }
    std::fs::copy(fixture("images/rgb.jpg"), folder.path().join("train/b/1.gif")).unwrap();
    let dataset = open(&spec(folder.path(), FormatName::AUTO, Split::Train)).unwrap();
    assert_eq!((dataset.info().format.as_str(), dataset.len(), dataset.info().channels), ("image-folder", 3, 3));
    assert!(dataset.sample(0).unwrap().image.pixels == rgb);
    assert!(dataset.sample(2).unwrap().image.pixels == gunzip(fixture("images/rgb-jpg.raw")));
}

#[test]
fn bombs_are_refused_by_their_header() {
    let mut png = std::fs::read(fixture("images/rgb.png")).unwrap();
    png[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let expected = DecodeError::Size { width: 60_000, height: 60_000, max_pixels: 50_000_000 };
    assert_eq!(decode(&png, &DecodeLimits::default()), Err(expected.clone()));
    png[16..24].fill(0xFF);
    assert!(matches!(decode(&png, &DecodeLimits::default()), Err(DecodeError::Size { .. })));
    png[16..24].fill(0);
    assert!(matches!(decode(&png, &DecodeLimits::default()), Err(DecodeError::Size { width: 0, height: 0, .. })));

    let mut jpeg = std::fs::read(fixture("images/rgb.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xEA);
    assert!(matches!(decode(&jpeg, &DecodeLimits::default()), Err(DecodeError::Size { .. })));

    let png = std::fs::read(fixture("images/rgb.png")).unwrap();
    let limits = |max_pixels, max_bytes| DecodeLimits { max_pixels, max_bytes };
    assert!(decode(&png, &limits(1024, png.len())).is_ok());
    assert!(matches!(decode(&png, &limits(1023, png.len())), Err(DecodeError::Size { .. })));
    assert!(matches!(decode(&png, &limits(1024, png.len() - 1)), Err(DecodeError::Bytes { .. })));
    assert_eq!(
        decode(b"GIF88a", &DecodeLimits::default()).unwrap_err().to_string(),
        "not a png, jpeg, webp, bmp, tiff or gif image, begins with 47 49 46 38 38 61"
    );
}

#[test]
fn a_bomb_in_a_dataset_is_named_with_its_sample() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("image-folder"), folder.path());
    let path = folder.path().join("train/bee/1.png");
    let mut png = std::fs::read(&path).unwrap();
    png[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    std::fs::write(&path, png).unwrap();
    let dataset = open(&spec(folder.path(), FormatName::AUTO, Split::Train)).unwrap();
    let error = dataset.sample(2).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("train/bee/1.png: sample 2: image size must be 1 to 50000000 pixels in all, not 60000x60000"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 65);
    assert!(dataset.sample(1).is_ok() && dataset.sample(3).is_ok());
}

#[test]
fn cut_images_are_refused_at_every_length() {
    for name in ["rgb.png", "palette.png", "grey16.png", "rgb.jpg", "grey.jpg", "progressive.jpg"] {
        let bytes = std::fs::read(fixture("images").join(name)).unwrap();
        assert!(decode(&bytes, &DecodeLimits::default()).is_ok(), "{name}");
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], &DecodeLimits::default()).is_err(), "{name} cut to {len} bytes");
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for name in ["rgb.png", "palette.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg"] {
        let bytes = std::fs::read(fixture("images").join(name)).unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                // A decoder may accept damage inside the data, but then the image has its shape.
                if let Ok(image) = decode(&damaged, &DecodeLimits { max_pixels: 1 << 16, max_bytes: 1 << 20 }) {
                    assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
                }
            }
        }
    }
}

#[test]
fn resizing_keeps_constants_means_and_identity() {
    let rgb = Image { width: 32, height: 32, channels: 3, pixels: golden() };
    assert_eq!(resize(&rgb, 32, 32), rgb);
    for (width, height) in [(16, 16), (64, 48), (1, 1), (5, 31)] {
        for channels in [1, 3] {
            let image = to_channels(&rgb, channels);
            let scaled = resize(&image, width, height);
            assert_eq!((scaled.width, scaled.height, scaled.channels), (width, height, channels));
            assert_eq!(scaled.pixels.len(), width * height * channels);
            let flat = Image { pixels: vec![77; image.pixels.len()], ..image };
            assert!(resize(&flat, width, height).pixels.iter().all(|&value| value == 77));
        }
    }
    let mean =
        |image: &Image| image.pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / image.pixels.len() as f64;
    assert!((mean(&resize(&rgb, 16, 16)) - mean(&rgb)).abs() < 2.0);
    // Shrinking to half of a 2 x 2 checkerboard of 0 and 255 must average, not alias.
    let board = Image {
        width: 32,
        height: 32,
        channels: 1,
        pixels: (0..1024).map(|i| if (i % 32 + i / 32) % 2 == 0 { 0 } else { 255 }).collect(),
    };
    assert!(resize(&board, 16, 16).pixels.iter().all(|&value| (96..160).contains(&value)));
}

#[test]
fn channels_change_as_pillow_does() {
    let rgb = Image { width: 2, height: 2, channels: 3, pixels: vec![255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255] };
    assert_eq!(to_channels(&rgb, 1).pixels, [255, 76, 150, 29]);
    assert_eq!(to_channels(&to_channels(&rgb, 1), 3).pixels[3..6], [76; 3]);
    assert_eq!(to_channels(&rgb, 3), rgb);
}
