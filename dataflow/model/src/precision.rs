//! The precision of the networks' products.

use std::fmt;

use mlomae_kernels::{Bf16Unit, Factors};
use serde::{Deserialize, Serialize};

use crate::choice::Choice;
use crate::hypergradient::{HypergradientChoice, Tangent};

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

    /// The form of the hypergradient where none is chosen. Differences of losses that are rounded to 8 or 11 bits
    /// are noise.
    #[must_use]
    pub fn default_hypergradient(self) -> HypergradientChoice {
        match self {
            Precision::F32 => HypergradientChoice::default(),
            Precision::Tf32 | Precision::Bf16 => Choice::of(&Tangent),
        }
    }

    /// Why `form` is no good in this precision, as a line; none if it is.
    #[must_use]
    pub fn doubt(self, form: HypergradientChoice) -> Option<String> {
        (self != Precision::F32 && form != self.default_hypergradient()).then(|| {
            format!(
                "method.hypergradient = \"{form}\" with compute.precision = \"{self}\": a finite difference of losses \
                 in {self} is mostly rounding; \"{}\" takes the derivative itself",
                self.default_hypergradient()
            )
        })
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

    #[test]
    fn bf16_takes_the_derivative_itself() {
        let clean = HypergradientChoice::default();
        assert!(Precision::F32.doubt(clean).is_none());
        assert!(Precision::Bf16.doubt(clean).is_some_and(|line| line.contains("\"clean\"")));
        assert_eq!(Precision::Bf16.doubt(Precision::Bf16.default_hypergradient()), None);
    }
}
