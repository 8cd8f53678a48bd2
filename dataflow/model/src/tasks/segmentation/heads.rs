//! The heads that say the class of each pixel, and what they have in common.

use std::fmt;

use super::tokens::{TokenLinear, TokenPass};
use crate::layout::Layout;
use crate::tasks::TaskFacts;

/// A pass of a head over one image.
pub trait PixelPass {
    /// The logits `[side, side, classes]`. Their cotangents are written in their place before
    /// [`PixelPass::backward`].
    fn logits(&mut self) -> &mut [f64];

    /// Adds ∂ℓ/∂c to `dc` and overwrites `dz` `[L, dim]` with the cotangent of the tokens, from that of the logits.
    fn backward(self: Box<Self>, dc: Option<&mut [f64]>, dz: Option<&mut [f64]>);
}

/// A head, without weights.
pub trait PixelHead: Send + Sync + fmt::Debug {
    /// Initial weights, into a flat vector of the layout.
    fn init(&self, layout: &Layout, values: &mut [f32], seed: u64);

    /// Runs over the patch tokens `[L, dim]` of an image; `dropout` are factors for the normalised tokens, `[L, dim]`.
    fn pass<'a>(&'a self, c: &'a [f64], tokens: &[f32], dropout: Option<&[f32]>) -> Box<dyn PixelPass + 'a>;
}

/// A linear layer for each patch token, whose outputs are interpolated to pixels, as the field's linear evaluation of
/// segmentation does: bilinear with half-pixel centres (PyTorch's `interpolate` with `align_corners=False`).
#[derive(Clone, Debug)]
pub struct Bilinear {
    tokens: TokenLinear,
    grid: usize,
    num_classes: usize,
    /// For each pixel along a side: the patch before it, the one behind it, and the weight of the latter.
    places: Vec<(usize, usize, f64)>,
}

impl Bilinear {
    /// Appends its weights to the layout.
    #[must_use]
    pub fn new(layout: &mut Layout, facts: &TaskFacts) -> Self {
        let last = facts.grid - 1;
        let place = |pixel: usize| {
            let at = ((pixel as f64 + 0.5) / facts.patch as f64 - 0.5).clamp(0.0, last as f64);
            let before = at as usize;
            (before, (before + 1).min(last), at - before as f64)
        };
        Bilinear {
            tokens: TokenLinear::new(layout, facts.dim, facts.num_classes),
            grid: facts.grid,
            num_classes: facts.num_classes,
            places: (0..facts.side()).map(place).collect(),
        }
    }

    /// `[side, side, K]` of `[grid, grid, K]`: rows first, then columns.
    fn enlarged(&self, patches: &[f64]) -> Vec<f64> {
        let (side, row) = (self.places.len(), self.grid * self.num_classes);
        let mut tall = Vec::with_capacity(side * row);
        for &(before, behind, weight) in &self.places {
            let rows = patches[before * row..(before + 1) * row].iter().zip(&patches[behind * row..(behind + 1) * row]);
            tall.extend(rows.map(|(a, b)| (1.0 - weight) * a + weight * b));
        }
        let k = self.num_classes;
        let mut pixels = Vec::with_capacity(side * side * k);
        for row in tall.chunks_exact(row) {
            for &(before, behind, weight) in &self.places {
                let values = row[before * k..(before + 1) * k].iter().zip(&row[behind * k..(behind + 1) * k]);
                pixels.extend(values.map(|(a, b)| (1.0 - weight) * a + weight * b));
            }
        }
        pixels
    }

    /// The transpose of [`Bilinear::enlarged`].
    fn gathered(&self, dpixels: &[f64]) -> Vec<f64> {
        let (k, row) = (self.num_classes, self.grid * self.num_classes);
        let mut dpatches = vec![0.0; self.grid * row];
        let mut dtall = vec![0.0; row];
        for (line, &(above, below, of_below)) in dpixels.chunks_exact(self.places.len() * k).zip(&self.places) {
            dtall.fill(0.0);
            for (d, &(before, behind, weight)) in line.chunks_exact(k).zip(&self.places) {
                for class in 0..k {
                    dtall[before * k + class] += (1.0 - weight) * d[class];
                    dtall[behind * k + class] += weight * d[class];
                }
            }
            for (i, d) in dtall.iter().enumerate() {
                dpatches[above * row + i] += (1.0 - of_below) * d;
                dpatches[below * row + i] += of_below * d;
            }
        }
        dpatches
    }
}

impl PixelHead for Bilinear {
    fn init(&self, layout: &Layout, values: &mut [f32], seed: u64) {
        self.tokens.init(layout, values, seed);
    }

    fn pass<'a>(&'a self, c: &'a [f64], tokens: &[f32], dropout: Option<&[f32]>) -> Box<dyn PixelPass + 'a> {
        let (patches, pass) = self.tokens.forward(c, tokens, dropout);
        Box::new(BilinearPass { head: self, c, pass, pixels: self.enlarged(&patches) })
    }
}

struct BilinearPass<'a> {
    head: &'a Bilinear,
    c: &'a [f64],
    pass: TokenPass,
    pixels: Vec<f64>,
}

impl PixelPass for BilinearPass<'_> {
    fn logits(&mut self) -> &mut [f64] {
        &mut self.pixels
    }

    fn backward(self: Box<Self>, dc: Option<&mut [f64]>, dz: Option<&mut [f64]>) {
        self.head.tokens.backward(self.c, &self.pass, &self.head.gathered(&self.pixels), dc, dz);
    }
}

/// A linear layer for each patch token that gives the logits of all pixels of its patch.
#[derive(Clone, Debug)]
pub struct Shuffle {
    tokens: TokenLinear,
    grid: usize,
    patch: usize,
    num_classes: usize,
}

impl Shuffle {
    /// Appends its weights to the layout. Outputs are in the order (row, column, class).
    #[must_use]
    pub fn new(layout: &mut Layout, facts: &TaskFacts) -> Self {
        let TaskFacts { dim, grid, patch, num_classes, .. } = *facts;
        Shuffle { tokens: TokenLinear::new(layout, dim, patch * patch * num_classes), grid, patch, num_classes }
    }

    /// Copies lines of pixels of a patch between the order of patches and that of the image: `copy(patches, image)`
    /// with the ranges of one line.
    fn lines(&self, mut copy: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>)) {
        let line = self.patch * self.num_classes;
        for index in 0..self.grid * self.grid * self.patch {
            let (place, row) = (index / self.patch, index % self.patch);
            let (top, left) = (place / self.grid, place % self.grid);
            let at = ((top * self.patch + row) * self.grid + left) * line;
            copy(index * line..(index + 1) * line, at..at + line);
        }
    }
}

impl PixelHead for Shuffle {
    fn init(&self, layout: &Layout, values: &mut [f32], seed: u64) {
        self.tokens.init(layout, values, seed);
    }

    fn pass<'a>(&'a self, c: &'a [f64], tokens: &[f32], dropout: Option<&[f32]>) -> Box<dyn PixelPass + 'a> {
        let (patches, pass) = self.tokens.forward(c, tokens, dropout);
        let mut pixels = vec![0.0; patches.len()];
        self.lines(|from, to| pixels[to].copy_from_slice(&patches[from]));
        Box::new(ShufflePass { head: self, c, pass, pixels })
    }
}

struct ShufflePass<'a> {
    head: &'a Shuffle,
    c: &'a [f64],
    pass: TokenPass,
    pixels: Vec<f64>,
}

impl PixelPass for ShufflePass<'_> {
    fn logits(&mut self) -> &mut [f64] {
        &mut self.pixels
    }

    fn backward(self: Box<Self>, dc: Option<&mut [f64]>, dz: Option<&mut [f64]>) {
        let mut dpatches = vec![0.0; self.pixels.len()];
        self.head.lines(|to, from| dpatches[to].copy_from_slice(&self.pixels[from]));
        self.head.tokens.backward(self.c, &self.pass, &dpatches, dc, dz);
    }
}
