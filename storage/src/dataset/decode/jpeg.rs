//! JPEG by libjpeg-turbo's own code (through mozjpeg, which is that code for a decoder), so that pixels are those of
//! Pillow, browsers and OpenCV: its inverse DCT, its chroma upsampling, its rules of which colours a file means.
//!
//! libjpeg goes on where data is damaged or missing, with a warning. What a warning means follows from when it comes:
//! see [`Phases`]. What it does not warn of, scans that are not there at all, is found by a walk over the markers
//! first.

use std::cell::Cell;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress};
use mozjpeg_sys::{jpeg_common_struct, jpeg_error_mgr, msg_parm_union};

use super::{DecodeError, Stored, orientation};
use crate::guard::panic_text;

const FORMAT: &str = "jpeg";
/// Bytes that hold all before the first scan in most files, in nearly all, and in any.
const PREFIX_LENS: [u64; 3] = [4 << 10, 64 << 10, u64::MAX];
/// Scans of one image at most. Encoders make ten; each may cost a pass over all blocks, however few bytes it has.
const MAX_SCANS: usize = 256;
/// Bits of the last coefficient's place, of 64 in a block.
const NUM_COEFFICIENTS: usize = 64;

/// A component as the frame header has it.
#[derive(Debug, Clone)]
struct Component {
    id: u8,
    /// How many low bits of each coefficient are still to come; none before its first scan.
    missing_bits: [Option<u8>; NUM_COEFFICIENTS],
}

#[derive(Debug, Clone)]
struct Frame {
    is_progressive: bool,
    height: usize,
    width: usize,
    components: Vec<Component>,
}

/// What the markers before the first scan say, and where its data begins.
#[derive(Debug)]
struct Start {
    frame: Frame,
    orientation: Orientation,
    /// Where the first scan header (SOS) begins, at its length.
    scan: usize,
}

enum Fault {
    /// The bytes end before the walk does.
    Ends,
    Refused(DecodeError),
}

impl Fault {
    fn of(self, len: usize) -> DecodeError {
        match self {
            Self::Ends => DecodeError::Truncated { format: FORMAT, len },
            Self::Refused(error) => error,
        }
    }
}

fn unsupported<T>(reason: impl ToString) -> Result<T, Fault> {
    Err(Fault::Refused(DecodeError::unsupported(FORMAT, reason)))
}

fn corrupt<T>(reason: impl ToString) -> Result<T, Fault> {
    Err(Fault::Refused(DecodeError::corrupt(FORMAT, reason)))
}

fn be_u16(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    bytes.get(at..at + 2).map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]]))).ok_or(Fault::Ends)
}

/// The segment whose length stands at `at`, without that length.
fn segment(bytes: &[u8], at: usize) -> Result<&[u8], Fault> {
    let len = be_u16(bytes, at)?;
    if len < 2 {
        return corrupt(format!("a segment says that it has {len} bytes"));
    }
    bytes.get(at + 2..at + len).ok_or(Fault::Ends)
}

/// The next marker at or after `at`, and the place after it. Bytes between segments are skipped, as libjpeg does.
fn marker(bytes: &[u8], mut at: usize) -> Result<(u8, usize), Fault> {
    loop {
        at += bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xFF)).ok_or(Fault::Ends)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xFF).ok_or(Fault::Ends)?;
        at += 1;
        if bytes[at - 1] != 0 {
            return Ok((bytes[at - 1], at));
        }
    }
}

/// Which process a frame header's marker stands for, if it is none that is decoded.
fn foreign_process(marker: u8) -> Option<&'static str> {
    match marker {
        0xC3 => Some("lossless"),
        0xC5..=0xC7 => Some("hierarchical"),
        0xCB => Some("lossless with arithmetic coding"),
        0xCD..=0xCF => Some("hierarchical with arithmetic coding"),
        0xF7 => Some("JPEG-LS"),
        _ => None,
    }
}

fn frame(marker: u8, segment: &[u8]) -> Result<Frame, Fault> {
    let [bits, h1, h2, w1, w2, num, rest @ ..] = segment else {
        return corrupt("a frame header that is too short");
    };
    if *bits != 8 {
        return unsupported(format!("{bits} bits a channel, not 8"));
    }
    let (height, width) = (usize::from(u16::from_be_bytes([*h1, *h2])), usize::from(u16::from_be_bytes([*w1, *w2])));
    if height == 0 {
        return unsupported("the number of rows stands behind the image (DNL)");
    }
    if !matches!(num, 1 | 3 | 4) {
        return unsupported(format!("{num} colour components, not 1, 3 or 4"));
    }
    if rest.len() != 3 * usize::from(*num) {
        return corrupt("a frame header of wrong length");
    }
    let component = |part: &[u8]| Component { id: part[0], missing_bits: [None; NUM_COEFFICIENTS] };
    let components = rest.chunks_exact(3).map(component).collect();
    Ok(Frame { is_progressive: matches!(marker, 0xC2 | 0xCA), height, width, components })
}

/// Walks from the start to the first scan.
fn start(bytes: &[u8]) -> Result<Start, Fault> {
    let (mut at, mut found, mut turned) = (2, None, None);
    loop {
        let (marker, after) = marker(bytes, at)?;
        at = after;
        if let Some(process) = foreign_process(marker) {
            return unsupported(process);
        }
        match marker {
            // Markers without a segment.
            0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Err(Fault::Ends),
            0xDA => {
                let Some(frame) = found else { return corrupt("a scan before any frame header") };
                return Ok(Start { frame, orientation: turned.unwrap_or(Orientation::NoTransforms), scan: at });
            }
            // DHT, JPG and DAC share the range of frame headers.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let frame = frame(marker, segment(bytes, at)?)?;
                if found.replace(frame).is_some() {
                    return corrupt("two frame headers");
                }
            }
            0xE1 => {
                let segment = segment(bytes, at)?;
                if segment.starts_with(b"Exif\0\0") {
                    turned.get_or_insert_with(|| orientation::of_exif(segment));
                }
            }
            _ => drop(segment(bytes, at)?),
        }
        at += be_u16(bytes, at)?;
    }
}

/// Notes what a scan brings of each component.
fn add_scan(frame: &mut Frame, segment: &[u8]) -> Result<usize, Fault> {
    let num = usize::from(*segment.first().ok_or(Fault::Ends)?);
    let (Some(selectors), Some([first, last, bits])) = (segment.get(1..1 + 2 * num), segment.get(1 + 2 * num..)) else {
        return corrupt("a scan header of wrong length");
    };
    let (range, low) = if frame.is_progressive {
        (usize::from(*first)..=usize::from(*last), bits & 0xF)
    } else {
        (0..=NUM_COEFFICIENTS - 1, 0)
    };
    for selector in selectors.chunks_exact(2) {
        let component = frame.components.iter_mut().find(|component| component.id == selector[0]);
        let coefficients = component.and_then(|component| component.missing_bits.get_mut(range.clone()));
        let Some(coefficients) = coefficients else {
            return corrupt("a scan of what the frame does not have");
        };
        coefficients.fill(Some(low));
    }
    Ok(num)
}

/// Walks over all scans to the end marker, and says whether one scan has everything. Refuses images of which a part is
/// not there.
fn scans(bytes: &[u8], start: Start) -> Result<bool, Fault> {
    let (mut frame, mut at, mut num_scans, mut is_single) = (start.frame, start.scan, 0, false);
    loop {
        let header = segment(bytes, at)?;
        let num_components = add_scan(&mut frame, header)?;
        num_scans += 1;
        if num_scans > MAX_SCANS {
            return unsupported(format!("more than {MAX_SCANS} scans"));
        }
        if num_scans == 1 {
            is_single = !frame.is_progressive && num_components == frame.components.len();
        }
        at += header.len() + 2;
        // In a scan's data 0xFF is stuffed with 0 or begins a restart marker; tables may stand between scans.
        let is_at_scan = loop {
            let (marker, after) = marker(bytes, at)?;
            at = after;
            match marker {
                0x01 | 0xD0..=0xD7 => {}
                0xD9 => break false,
                0xDA => break true,
                _ => at += segment(bytes, at)?.len() + 2,
            }
        };
        if is_at_scan && is_single {
            return corrupt("more scans than an image has");
        }
        if !is_at_scan {
            break;
        }
    }
    let is_missing = |bits: &Option<u8>| *bits != Some(0);
    if frame.components.iter().any(|component| component.missing_bits.iter().any(is_missing)) {
        return corrupt("it ends before its last scan");
    }
    Ok(is_single)
}

/// Size, channels and orientation: all that stands before the first scan.
pub(super) fn header(reader: &mut (impl Read + Seek), len: usize) -> Result<Stored, DecodeError> {
    let (mut bytes, mut found) = (Vec::new(), Err(Fault::Ends));
    for prefix in PREFIX_LENS {
        let more = prefix - bytes.len() as u64;
        reader.by_ref().take(more).read_to_end(&mut bytes).map_err(|e| DecodeError::corrupt(FORMAT, e))?;
        found = start(&bytes);
        if !matches!(found, Err(Fault::Ends)) || len as u64 <= prefix {
            break;
        }
    }
    let Start { frame, orientation, .. } = found.map_err(|fault| fault.of(len))?;
    let channels = if frame.components.len() == 1 { 1 } else { 3 };
    Ok(Stored { width: frame.width, height: frame.height, channels, orientation })
}

thread_local! {
    static NUM_WARNINGS: Cell<u64> = const { Cell::new(0) };
}

/// libjpeg's warnings by the time at which they came.
///
/// Before the first scan they are about segments (stray bytes, odd versions). While rows of a single scan are decoded
/// they say that its data is damaged or ends early, and after the last row that bytes are left over, which changes no
/// pixel. Images of several scans are decoded whole at the start, where nothing distinguishes these, so that every
/// warning counts.
#[derive(Debug, Default)]
struct Phases {
    at_start: u64,
    in_rows: u64,
}

extern "C-unwind" fn count_warning(_: &mut jpeg_common_struct, level: i32) {
    if level < 0 {
        NUM_WARNINGS.set(NUM_WARNINGS.get().saturating_add(1));
    }
}

extern "C-unwind" fn give_up(_: &mut jpeg_common_struct) {
    // Past the panic hook: a refused image is no panic.
    resume_unwind(Box::new(()));
}

extern "C-unwind" fn do_nothing(_: &mut jpeg_common_struct) {}

extern "C-unwind" fn format_nothing(_: &mut jpeg_common_struct, _: &[u8; 80]) {}

/// Errors unwind, warnings are counted, nothing is printed. (The wrapper's own manager has the words of errors, but
/// drops warnings.)
fn counting() -> jpeg_error_mgr {
    jpeg_error_mgr {
        error_exit: Some(give_up),
        emit_message: Some(count_warning),
        output_message: Some(do_nothing),
        format_message: Some(format_nothing),
        reset_error_mgr: Some(do_nothing),
        msg_code: 0,
        msg_parm: msg_parm_union { _bindgen_data_: [0; 20] },
        trace_level: 0,
        num_warnings: 0,
        jpeg_message_table: std::ptr::null(),
        last_jpeg_message: 0,
        addon_message_table: std::ptr::null(),
        first_addon_message: 0,
        last_addon_message: 0,
    }
}

/// Pixels of 1 or 3 channels, or 4 of CMYK, and when warnings came.
fn decompress(bytes: &[u8], with: Option<jpeg_error_mgr>) -> std::io::Result<(usize, Vec<u8>, Phases)> {
    let builder = with.map_or_else(Decompress::builder, Decompress::with_err);
    let decompress = builder.from_mem(bytes)?;
    let num_components = decompress.components().len();
    let colours = match num_components {
        1 => ColorSpace::JCS_GRAYSCALE,
        4 => ColorSpace::JCS_CMYK,
        _ => ColorSpace::JCS_RGB,
    };
    let before = NUM_WARNINGS.get();
    let mut started = decompress.to_colorspace(colours)?;
    let at_start = NUM_WARNINGS.get() - before;
    let mut pixels = vec![0; started.width() * started.height() * num_components];
    started.read_scanlines_into(&mut pixels)?;
    let in_rows = NUM_WARNINGS.get() - before - at_start;
    started.finish()?;
    Ok((num_components, pixels, Phases { at_start, in_rows }))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let is_single = start(bytes).and_then(|start| scans(bytes, start)).map_err(|fault| fault.of(bytes.len()))?;
    let refuse = |reason: String| DecodeError::corrupt(FORMAT, reason);
    // Only numbers and vectors of this call are touched, and they are dropped.
    let decoded = catch_unwind(AssertUnwindSafe(|| decompress(bytes, Some(counting()))));
    let (num_components, pixels, phases) = match decoded {
        Ok(Ok(decoded)) => decoded,
        Ok(Err(error)) => return Err(refuse(error.to_string())),
        Err(_) => return Err(refusal(bytes)),
    };
    let num_warnings = phases.in_rows + if is_single { 0 } else { phases.at_start };
    if num_warnings > 0 {
        return Err(refuse("the data of a scan is damaged or ends early".to_owned()));
    }
    Ok(if num_components == 4 { rgb_of_cmyk(&pixels) } else { pixels })
}

/// Why libjpeg gave up: decodes once more with the manager that has its words.
fn refusal(bytes: &[u8]) -> DecodeError {
    let words = match catch_unwind(AssertUnwindSafe(|| decompress(bytes, None))) {
        Err(payload) => panic_text(&*payload).to_owned(),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) => String::new(),
    };
    let words = words.trim_start_matches("libjpeg fatal error: ");
    if words.contains("not implemented") || words.contains("not supported") || words.starts_with("Unsupported") {
        return DecodeError::unsupported(FORMAT, super::one_line(words));
    }
    DecodeError::corrupt(FORMAT, if words.is_empty() { "the decoder gave up" } else { words })
}

/// CMYK as Adobe stores it, inverted, which is what all readers take it for; to RGB as Pillow does it.
fn rgb_of_cmyk(pixels: &[u8]) -> Vec<u8> {
    let scaled = |ink: u8, light: u8| {
        let product = u32::from(ink) * u32::from(light) + 128;
        light - (((product >> 8) + product) >> 8) as u8
    };
    let rgb = |cmyk: &[u8]| [0, 1, 2].map(|ink| scaled(255 - cmyk[ink], cmyk[3]));
    pixels.chunks_exact(4).flat_map(rgb).collect()
}
