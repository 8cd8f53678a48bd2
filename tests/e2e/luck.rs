//! Seeded random numbers for tests; every test that draws prints its seed.

use std::time::Duration;

/// A pseudorandom number generator (SplitMix64).
pub struct Luck(u64);

impl Luck {
    /// From MLOMAE_TEST_SEED, else from `seed`; printed.
    pub fn new(seed: u64) -> Self {
        let seed = std::env::var("MLOMAE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
        println!("seed {seed} (another by MLOMAE_TEST_SEED)");
        Self(seed)
    }

    /// From a seed, without printing it.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }

    /// A uniform part of `time`.
    pub fn part_of(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.below(1_000_000) as f64 / 1e6)
    }
}
