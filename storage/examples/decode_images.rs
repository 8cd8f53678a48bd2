//! Decodes all files of a folder and writes what the dataset readers make of them: `NAME.pnm` (grey or RGB, binary
//! PNM), or
//! `NAME.refused` with the reason. `tests/python/images.py` compares both with Pillow.
//!
//! `cargo run --release -p mlomae-storage --example decode_images -- IN_FOLDER OUT_FOLDER`

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use mlomae_storage::dataset::{DecodeLimits, Decoder};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(from), Some(to), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: decode_images IN_FOLDER OUT_FOLDER".into());
    };
    fs::create_dir_all(&to)?;
    let decoder = Decoder::new(DecodeLimits::default());
    let (mut num_decoded, mut num_refused) = (0, 0);
    for entry in fs::read_dir(&from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path)?;
        match decoder.decode(&bytes) {
            Ok(image) => {
                // What a header says must be what comes out: readers plan by it.
                let header = decoder.header(&bytes)?;
                assert_eq!((header.width, header.height), (image.width, image.height), "{name}");
                assert_eq!(header.channels, image.channels, "{name}");
                let kind = if image.channels == 1 { "P5" } else { "P6" };
                let mut pnm = format!("{kind}\n{} {}\n255\n", image.width, image.height).into_bytes();
                pnm.extend(&image.pixels);
                fs::write(to.join(format!("{name}.pnm")), pnm)?;
                num_decoded += 1;
            }
            Err(error) => {
                fs::write(to.join(format!("{name}.refused")), error.to_string())?;
                num_refused += 1;
            }
        }
    }
    println!("{num_decoded} files decoded, {num_refused} refused");
    Ok(())
}
