//! The panel that `mlomae visualize` writes: a row for each image with its scores, its mask and
//! its reconstruction. A pure function of arrays.

mod colors;
mod font;

use image::{Rgb, RgbImage};

use colors::heat;

/// A column of the panel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Image,
    Scores,
    Visible,
    Reconstruction,
}

impl Column {
    /// From left to right.
    const ALL: [Self; 4] = [Self::Image, Self::Scores, Self::Visible, Self::Reconstruction];

    const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Scores => "scores",
            Self::Visible => "visible",
            Self::Reconstruction => "reconstruction",
        }
    }
}

/// Side of a cell, in pixels: images are magnified by a whole factor to about this.
const CELL_SIDE: usize = 160;
/// Space between cells and at the edges, in pixels.
const GAP: usize = 10;
/// Height of a line of text with the space below it, in pixels.
const LINE: usize = font::HEIGHT + 5;
/// Width and height of the legend's colour bar, in pixels.
const LEGEND: (usize, usize) = (120, 10);

const PAPER: Rgb<u8> = Rgb([250, 250, 250]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);
const FAINT: Rgb<u8> = Rgb([120, 120, 120]);
/// A masked patch: two greys in diagonal stripes, so that it cannot be taken for a grey image.
const STRIPES: [Rgb<u8>; 2] = [Rgb([150, 150, 158]), Rgb([132, 132, 140])];

/// The edge of a known object over the scores, and its width in pixels.
const OUTLINE: Rgb<u8> = Rgb([0, 200, 120]);
const OUTLINE_WIDTH: usize = 2;

/// The images' common shape.
#[derive(Debug, Clone, Copy)]
pub struct PanelShape {
    /// Height and width of an image, in pixels.
    pub image: usize,
    /// Side of a patch, in pixels; divides `image`.
    pub patch: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
}

impl PanelShape {
    const fn grid(&self) -> usize {
        self.image / self.patch
    }

    const fn num_values(&self) -> usize {
        self.image * self.image * self.channels
    }
}

/// One row of the panel.
#[derive(Debug, Clone)]
pub struct PanelRow {
    /// What stands above the row, such as the sample's id and class.
    pub title: String,
    /// The image, [image, image, channels], 0 to 255.
    pub image: Vec<u8>,
    /// The score of each patch, [grid * grid], row by row; none for random masks.
    pub scores: Option<Vec<f32>>,
    /// Whether each patch holds a part of the image's object, [grid * grid], where that is known: outlined over the
    /// scores.
    pub object: Option<Vec<bool>>,
    /// Whether each patch was masked, [grid * grid].
    pub mask: Vec<bool>,
    /// The decoder's image in the pixels of the dataset, [image, image, channels], 0 to 255. Only
    /// its masked patches are shown; the visible ones are the image's.
    pub reconstruction: Vec<u8>,
}

/// Arrays that do not make a panel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PanelError {
    /// No row.
    #[error("a panel needs at least one row")]
    Empty,
    /// A shape that cannot be.
    #[error(
        "image side must be a multiple of the patch side and channels 1 or 3, \
         got image {image}, patch {patch}, channels {channels}"
    )]
    Shape {
        /// The image's side.
        image: usize,
        /// The patch's side.
        patch: usize,
        /// The number of channels.
        channels: usize,
    },
    /// An array of the wrong length.
    #[error("row {row}: {array} must have {expected} values, not {found}")]
    Length {
        /// The row, from 0.
        row: usize,
        /// Which array.
        array: &'static str,
        /// Values that the shape requires.
        expected: usize,
        /// Values that there are.
        found: usize,
    },
}

/// Composes the panel of `rows`. `notes` are lines of text below it.
///
/// The heat map's colours span the finite scores of the whole panel; its legend gives their range. If no row has
/// scores, there is neither.
///
/// # Errors
/// [`PanelError`] if an array does not have the length that `shape` requires.
pub fn compose(shape: PanelShape, rows: &[PanelRow], notes: &[String]) -> Result<RgbImage, PanelError> {
    check(shape, rows)?;
    let zoom = (CELL_SIDE / shape.image).max(1);
    let side = shape.image * zoom;
    let has_scores = rows.iter().any(|row| row.scores.is_some());
    let columns: Vec<Column> = Column::ALL.into_iter().filter(|c| has_scores || *c != Column::Scores).collect();
    let columns_width = GAP + columns.len() * (side + GAP);
    let notes_width = notes.iter().map(|note| font::width(note)).max().unwrap_or(0) + 2 * GAP;
    let width = columns_width.max(notes_width).max(LEGEND.0 + 160 + 2 * GAP);
    let row_height = LINE + side + GAP;
    let height = GAP + LINE + rows.len() * row_height + LINE * (usize::from(has_scores) + notes.len()) + GAP;
    let mut canvas = Canvas { pixels: RgbImage::from_pixel(width as u32, height as u32, PAPER) };
    let left = |column: usize| GAP + column * (side + GAP);
    for (place, column) in columns.iter().enumerate() {
        canvas.text(left(place), GAP, column.name(), INK);
    }
    let range = score_range(rows);
    for (number, row) in rows.iter().enumerate() {
        let top = GAP + LINE + number * row_height;
        let num_masked = row.mask.iter().filter(|masked| **masked).count();
        let title = format!("{}, {num_masked} of {} patches masked", row.title, row.mask.len());
        canvas.text(left(0), top, &title, FAINT);
        let top = top + LINE;
        for y in 0..side {
            for x in 0..side {
                let pixel = (y / zoom) * shape.image + x / zoom;
                let patch = (y / zoom / shape.patch) * shape.grid() + x / zoom / shape.patch;
                let image = color(&row.image, pixel, shape.channels);
                let is_masked = row.mask[patch];
                for (place, column) in columns.iter().enumerate() {
                    let color = match column {
                        Column::Scores if is_edge(row, x, y, shape, zoom) => OUTLINE,
                        Column::Scores => row.scores.as_ref().map_or(PAPER, |s| heat(relative(s[patch], range))),
                        Column::Visible if is_masked => STRIPES[(x + y) / 4 % 2],
                        Column::Reconstruction if is_masked => color(&row.reconstruction, pixel, shape.channels),
                        Column::Image | Column::Visible | Column::Reconstruction => image,
                    };
                    canvas.put(left(place) + x, top + y, color);
                }
            }
        }
    }
    let top = GAP + LINE + rows.len() * row_height;
    if has_scores {
        canvas.legend(GAP, top, range);
    }
    let top = top + LINE * usize::from(has_scores);
    for (number, note) in notes.iter().enumerate() {
        canvas.text(GAP, top + LINE * number, note, FAINT);
    }
    Ok(canvas.pixels)
}

fn check(shape: PanelShape, rows: &[PanelRow]) -> Result<(), PanelError> {
    let PanelShape { image, patch, channels } = shape;
    if image == 0 || patch == 0 || !image.is_multiple_of(patch) || !matches!(channels, 1 | 3) {
        return Err(PanelError::Shape { image, patch, channels });
    }
    if rows.is_empty() {
        return Err(PanelError::Empty);
    }
    let num_patches = shape.grid() * shape.grid();
    for (row, arrays) in rows.iter().enumerate() {
        let lengths = [
            ("image", arrays.image.len(), shape.num_values()),
            ("scores", arrays.scores.as_ref().map_or(num_patches, Vec::len), num_patches),
            ("object", arrays.object.as_ref().map_or(num_patches, Vec::len), num_patches),
            ("mask", arrays.mask.len(), num_patches),
            ("reconstruction", arrays.reconstruction.len(), shape.num_values()),
        ];
        for (array, found, expected) in lengths {
            if found != expected {
                return Err(PanelError::Length { row, array, expected, found });
            }
        }
    }
    Ok(())
}

/// Whether the pixel (`x`, `y`) of a magnified cell lies in an object's patch and next to another.
fn is_edge(row: &PanelRow, x: usize, y: usize, shape: PanelShape, zoom: usize) -> bool {
    let Some(object) = &row.object else { return false };
    let (grid, side) = (shape.grid(), shape.patch * zoom);
    let is_object = |x: usize, y: usize| object[y / side * grid + x / side];
    // Beyond the image there is no object.
    let is_other = |x: Option<usize>, y: Option<usize>| match (x, y) {
        (Some(x), Some(y)) if x < grid * side && y < grid * side => !is_object(x, y),
        _ => true,
    };
    let near = [
        (x.checked_sub(OUTLINE_WIDTH), Some(y)),
        (Some(x + OUTLINE_WIDTH), Some(y)),
        (Some(x), y.checked_sub(OUTLINE_WIDTH)),
        (Some(x), Some(y + OUTLINE_WIDTH)),
    ];
    is_object(x, y) && near.into_iter().any(|(x, y)| is_other(x, y))
}

/// Least and greatest finite score; (0, 1) if there is none.
fn score_range(rows: &[PanelRow]) -> (f32, f32) {
    let finite = || rows.iter().filter_map(|row| row.scores.as_ref()).flatten().copied().filter(|s| s.is_finite());
    match (finite().reduce(f32::min), finite().reduce(f32::max)) {
        (Some(low), Some(high)) => (low, high),
        _ => (0.0, 1.0),
    }
}

/// Where `score` lies in `range`, 0 to 1; the middle of an empty range. NaN stays.
fn relative(score: f32, (low, high): (f32, f32)) -> f32 {
    if high > low { (score - low) / (high - low) } else { score * 0.0 + 0.5 }
}

fn color(values: &[u8], pixel: usize, channels: usize) -> Rgb<u8> {
    let channel = |channel: usize| values[pixel * channels + channel % channels];
    Rgb([channel(0), channel(1), channel(2)])
}

struct Canvas {
    pixels: RgbImage,
}

impl Canvas {
    /// Sets a pixel; what lies outside is cut off.
    fn put(&mut self, x: usize, y: usize, color: Rgb<u8>) {
        if let Some(pixel) = self.pixels.get_pixel_mut_checked(x as u32, y as u32) {
            *pixel = color;
        }
    }

    fn text(&mut self, left: usize, top: usize, text: &str, color: Rgb<u8>) {
        font::draw(text, |x, y| self.put(left + x, top + y, color));
    }

    fn legend(&mut self, left: usize, top: usize, (low, high): (f32, f32)) {
        let low = format!("score {low:.3}");
        self.text(left, top, &low, INK);
        let left = left + font::width(&low) + 6;
        for x in 0..LEGEND.0 {
            for y in 0..LEGEND.1 {
                self.put(left + x, top + y, heat(x as f32 / (LEGEND.0 - 1) as f32));
            }
        }
        let left = left + LEGEND.0 + 6;
        self.text(left, top, &format!("{high:.3}  high scores are masked"), INK);
    }
}

#[cfg(test)]
mod tests;
