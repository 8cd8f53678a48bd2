use std::io::Read;

use super::super::decode::{DecodeError, DecodeLimits, decode, header};
use super::super::resize::{resize, to_channels};
use super::*;

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
fn jpeg_of_every_kind_is_near_pillow() {
    for (name, channels, mean_limit) in [("rgb", 3, 1.0), ("grey", 1, 0.5), ("progressive", 3, 1.0), ("cmyk", 3, 3.0)] {
        let bytes = std::fs::read(fixture(&format!("images/{name}.jpg"))).unwrap();
        let image = decode(&bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((image.width, image.height, image.channels), (32, 32, channels), "{name}");
        let expected = gunzip(fixture(&format!("images/{name}-jpg.raw")));
        let difference: u32 = image.pixels.iter().zip(&expected).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let mean = f64::from(difference) / expected.len() as f64;
        // Decoders may round and interpolate colour differently.
        assert!(image.pixels.len() == expected.len() && mean < mean_limit, "{name}: {mean}");
    }
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
        decode(b"GIF89a", &DecodeLimits::default()).unwrap_err().to_string(),
        "not a png or jpeg image, begins with 47 49 46 38 39 61"
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
    let dataset = open(&spec(folder.path(), Format::Auto, Split::Train)).unwrap();
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
