//! The precision of the networks' products.

use std::fmt;

use mlomae_kernels::{Bf16Unit, Factors};
use serde::{Deserialize, Serialize};

/// What the factors of the products of encoder and decoder are rounded to. Sums, the residual stream, norms, softmax,
/// losses, heads, the masking network with the embedding that it reads, weights and moments stay in `f32` or `f64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing: 24 bits.
    #[default]
    F32,
    /// 11 bits, on GPUs alone.
    Tf32,
    /// 8 bits, about twice as fast where the processor multiplies them.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

    /// Its name in configurations and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }

    /// The one of that name; none if there is none.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }

    /// Factors of the CPU's products. It has no tf32 and computes with all bits instead, but
    /// [`Device::refuses`](crate::lane::Device::refuses) comes before.
    #[must_use]
    pub const fn factors(self) -> Factors {
        match self {
            Precision::F32 | Precision::Tf32 => Factors::F32,
            Precision::Bf16 => Factors::Bf16,
        }
    }

    /// The CPU's arithmetic in words, for reports.
    #[must_use]
    pub fn arithmetic(self) -> String {
        match self.factors() {
            Factors::F32 => "f32".to_owned(),
            Factors::Bf16 => format!("f32 with products in bf16 (by {})", Bf16Unit::here().name()),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files() {
        for precision in Precision::ALL {
            assert_eq!(serde_json::to_value(precision).unwrap(), precision.name());
            assert_eq!(Precision::by_name(precision.name()), Some(precision));
        }
        assert_eq!(Precision::by_name("f16"), None);
    }
}
