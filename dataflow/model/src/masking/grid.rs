//! Masks that keep one patch of every cell of 2 x 2, drawn at random, as "uniform sampling" (arXiv 2205.10063): visible
//! patches lie evenly over the image, at a masking ratio of 0.75.
//!
//! At other ratios the patches of a cell have an order, and so have the cells: first come the first patches of all cells
//! in their order, then the second ones, and so on, of which as many are visible as shall be. At the border of a grid of
//! odd side cells reach beyond the image. Their patches outside are drawn too and are passed over, so that every patch
//! has the same chance.

use std::sync::Arc;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use crate::choice::Named;
use crate::rng::shuffle;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "grid"
    }
    fn summary(&self) -> &'static str {
        "One visible patch in each cell of 2 x 2 (arXiv 2205.10063), fewer or more at other ratios than 0.75, and a loss \
         without scores: levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Grid { grid: facts.grid })
    }
}

/// Masks of cells.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Patches along one side.
    grid: usize,
}

impl Masking for Grid {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Place of the patch's turn: whole numbers, all different within an image.
    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        let cells_along_side = self.grid.div_ceil(2);
        let num_cells = cells_along_side * cells_along_side;
        let mut keys = Vec::with_capacity(num_images * self.grid * self.grid);
        for image in 0..num_images {
            let mut rng = rule.rng(image);
            let mut rank: Vec<usize> = (0..num_cells).collect();
            shuffle(&mut rank, &mut rng);
            let rounds: Vec<[usize; 4]> = (0..num_cells)
                .map(|_| {
                    let mut rounds = [0, 1, 2, 3];
                    shuffle(&mut rounds, &mut rng);
                    rounds
                })
                .collect();
            keys.extend((0..self.grid * self.grid).map(|patch| {
                let (y, x) = (patch / self.grid, patch % self.grid);
                let cell = y / 2 * cells_along_side + x / 2;
                (rounds[cell][y % 2 * 2 + x % 2] * num_cells + rank[cell]) as f32
            }));
        }
        keys
    }
}
