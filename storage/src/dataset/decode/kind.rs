//! Which format bytes have, by their signature alone: names of files lie.

use super::DecodeError;

/// First bytes that are looked at for a signature.
pub(super) const SIGNATURE_LEN: usize = 512;

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Png,
    Jpeg,
    Webp,
    Bmp,
    Tiff,
    Gif,
}

/// What people store as images by mistake or hope, and other signatures of formats that are not read.
const FOREIGN: [(&[u8], &str); 32] = [
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "PSD (Photoshop)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"gimp xcf", "XCF (GIMP)"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"DDS ", "DDS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"BPG\xfb", "BPG"),
    (b"\0\0\x01\0", "ICO"),
    (b"\0\0\x02\0", "CUR"),
    (b"FLIF", "FLIF"),
    (b"FUJIFILM", "a raw photograph"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"SIMPLE  =", "FITS"),
    (b"PAR1", "Parquet"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ", "xz"),
    (b"version https://git-lfs", "a Git LFS pointer, whose file was never fetched"),
    (b"\x1aE\xdf\xa3", "a video (Matroska)"),
    (b"\x80\x04", "a pickle"),
    (b"<!--", "HTML or XML"),
    (b"\0\0\0\0\0\0\0\0", "zeros"),
];

/// Beginnings of text, in small letters, after white space and a byte order mark.
const FOREIGN_TEXT: [(&str, &str); 6] = [
    ("<svg", "SVG"),
    ("<!doctype svg", "SVG"),
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<head", "an HTML page"),
    ("{", "JSON"),
];

impl Kind {
    /// The format of a file that begins with `begin`.
    ///
    /// # Errors
    /// Another format by its name, or the first bytes.
    pub fn of(begin: &[u8]) -> Result<Self, DecodeError> {
        if begin.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Self::Png);
        }
        if begin.starts_with(&[0xFF, 0xD8]) {
            return Ok(Self::Jpeg);
        }
        if begin.starts_with(b"RIFF") && begin.get(8..12) == Some(b"WEBP") {
            return Ok(Self::Webp);
        }
        if begin.starts_with(b"BM") {
            return Ok(Self::Bmp);
        }
        if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|start| begin.starts_with(*start)) {
            return Ok(Self::Tiff);
        }
        if begin.starts_with(b"GIF87a") || begin.starts_with(b"GIF89a") {
            return Ok(Self::Gif);
        }
        if let Some(what) = foreign(begin) {
            return Err(DecodeError::ForeignFormat { what });
        }
        let begins = begin.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        Err(DecodeError::UnknownFormat { begins: if begins.is_empty() { "nothing".to_owned() } else { begins } })
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Gif => "gif",
        }
    }
}

/// The name of a format that is not read.
fn foreign(begin: &[u8]) -> Option<&'static str> {
    if begin.get(4..8) == Some(b"ftyp") {
        return Some(match begin.get(8..12)? {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => "HEIC",
            _ => "a video (MP4)",
        });
    }
    if begin.starts_with(b"RIFF") && begin.len() >= 12 {
        return Some(if &begin[8..12] == b"AVI " { "a video (AVI)" } else { "a RIFF file of another kind" });
    }
    if let [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] = begin {
        return Some("PNM (portable anymap)");
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(start, _)| begin.starts_with(start)) {
        return Some(what);
    }
    let text = String::from_utf8_lossy(begin);
    let text = text.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if text.starts_with("<?xml") {
        return Some(if text.contains("<svg") { "SVG" } else { "HTML or XML" });
    }
    FOREIGN_TEXT.iter().find(|(start, _)| text.starts_with(start)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_as_what_they_are() {
        let cases: [(&[u8], &str); 14] = [
            (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x18ftypheic", "HEIC"),
            (b"\0\0\0\x18ftypisom", "a video (MP4)"),
            (b"\xff\x0a\xfa\x1f", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n\0", "JPEG 2000"),
            (b"8BPS\0\x01", "PSD (Photoshop)"),
            (b"%PDF-1.7", "PDF"),
            (b"\xef\xbb\xbf\n<?xml version=\"1.0\"?>\n<svg xmlns", "SVG"),
            (b"  <SVG width", "SVG"),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"P6\n3 2\n255\n", "PNM (portable anymap)"),
            (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer, whose file was never fetched"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "a RIFF file of another kind"),
            (b"{\"error\": 404}", "JSON"),
        ];
        for (bytes, what) in cases {
            assert_eq!(Kind::of(bytes), Err(DecodeError::ForeignFormat { what }));
        }
        let error = Kind::of(cases[0].0).unwrap_err().to_string();
        assert_eq!(error, "images must be png, jpeg, webp, bmp, tiff or gif, not AVIF");
        let error = Kind::of(b"who knows").unwrap_err().to_string();
        assert_eq!(error, "not a png, jpeg, webp, bmp, tiff or gif image, begins with 77 68 6f 20 6b 6e 6f 77");
        assert!(Kind::of(b"").unwrap_err().to_string().ends_with("begins with nothing"));
    }
}
