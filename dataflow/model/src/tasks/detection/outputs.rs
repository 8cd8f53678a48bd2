//! How the outputs of a patch belong to locations.

/// The outputs of an image's patches `[patches, (K + 5)·u²]`, read by location. A patch has u×u locations; channel k of
/// that in row i and column j of them is output k·u² + i·u + j (pixel shuffle, arXiv 1609.05158). Channels are K class
/// logits, the distances to the left, top, right and bottom edge, and the centerness logit.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    values: &'a [f64],
    num_classes: usize,
    grid: usize,
    upsample: usize,
}

/// Channels of a location beside its class logits.
pub const BOX_CHANNELS: usize = 5;

impl<'a> Outputs<'a> {
    /// The outputs of a grid of `grid`² patches with `upsample`² locations each.
    #[must_use]
    pub const fn new(values: &'a [f64], num_classes: usize, grid: usize, upsample: usize) -> Self {
        Outputs { values, num_classes, grid, upsample }
    }

    /// Classes.
    #[must_use]
    pub const fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// Where channel `channel` of a location is in the values.
    #[must_use]
    pub const fn place(&self, location: usize, channel: usize) -> usize {
        let (up, side) = (self.upsample, self.grid * self.upsample);
        let [row, column] = [location / side, location % side];
        let patch = row / up * self.grid + column / up;
        patch * (self.num_classes + BOX_CHANNELS) * up * up + channel * up * up + row % up * up + column % up
    }

    /// The logit of a class.
    #[must_use]
    pub const fn class(&self, location: usize, class: usize) -> f64 {
        self.values[self.place(location, class)]
    }

    /// The distance to an edge before the softplus.
    #[must_use]
    pub const fn distance(&self, location: usize, side: usize) -> f64 {
        self.values[self.place(location, self.num_classes + side)]
    }

    /// The centerness logit.
    #[must_use]
    pub const fn centerness(&self, location: usize) -> f64 {
        self.values[self.place(location, self.num_classes + 4)]
    }
}
