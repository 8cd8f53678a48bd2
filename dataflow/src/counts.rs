//! What training counts: level-1 steps, outer iterations and versions of the policy; and how one becomes another.
//!
//! All count from 0, so a number is also how many came before: `Outer(3)` is the fourth outer iteration, and a run that
//! has done three of them. `unroll` is everywhere the number k of level-1 steps in an outer iteration, at least one.
//! The runtime of the stages has units of work instead, which are plain numbers: a stage says what its units are.

use serde::Serialize;

/// Declares a count, which is written as its number.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

counts! {
    /// A level-1 step, or level-1 steps done.
    Step;
    /// An outer iteration, or outer iterations done: k steps of level 1, then one of level 2 and one of level 3.
    Outer;
    /// A version of the policy: updates before it.
    Version;
}

impl Step {
    /// The step after it; as a number of steps done, one more.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The outer iteration that it belongs to.
    #[must_use]
    pub const fn outer(self, unroll: u64) -> Outer {
        Outer(self.0 / unroll)
    }

    /// Whether an outer iteration begins with it.
    #[must_use]
    pub const fn is_first_of_outer(self, unroll: u64) -> bool {
        self.0.is_multiple_of(unroll)
    }

    /// Whether an outer iteration's level 1 ends with it.
    #[must_use]
    pub const fn is_last_of_outer(self, unroll: u64) -> bool {
        self.next().is_first_of_outer(unroll)
    }

    /// Steps from `earlier` to it; 0 if that is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether the last `span` of this many steps done reached a multiple of `every`.
    #[must_use]
    pub const fn has_passed(self, every: u64, span: u64) -> bool {
        self.0 / every > (self.0 - span) / every
    }

    /// As the logs and `run.json` keep it.
    #[must_use]
    pub fn logged(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// From its form in the logs and in `run.json`.
    #[must_use]
    pub fn from_logged(step: i64) -> Self {
        Self(u64::try_from(step).unwrap_or(0))
    }
}

impl Outer {
    /// The outer iteration after it; as a number of them done, one more.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The outer iterations from it up to `end`, without `end`.
    pub fn until(self, end: Self) -> impl Iterator<Item = Self> {
        (self.0..end.0).map(Self)
    }

    /// Its first level-1 step; as a number of outer iterations done, the level-1 steps done.
    #[must_use]
    pub const fn first_step(self, unroll: u64) -> Step {
        Step(self.0 * unroll)
    }

    /// As [`first_step`](Self::first_step); none if the logs could not keep it.
    #[must_use]
    pub fn checked_first_step(self, unroll: u64) -> Option<Step> {
        self.0.checked_mul(unroll).map(Step).filter(|step| i64::try_from(step.0).is_ok())
    }

    /// Its level-1 step at `place`, from 0 to below `unroll`.
    #[must_use]
    pub const fn step_at(self, place: u64, unroll: u64) -> Step {
        Step(self.first_step(unroll).0 + place)
    }

    /// The level-1 steps done at its end: the first step of the iteration after it.
    #[must_use]
    pub const fn end_step(self, unroll: u64) -> Step {
        self.next().first_step(unroll)
    }

    /// The newest version of the policy when it begins, as each outer iteration before it made one.
    #[must_use]
    pub const fn newest_version(self) -> Version {
        Version(self.0)
    }
}

impl Version {
    /// The version `lag` updates before it, at least the initial one.
    #[must_use]
    pub const fn before(self, lag: u64) -> Self {
        Self(self.0.saturating_sub(lag))
    }

    /// Updates from `earlier` to it; 0 if that is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether it is the policy that training began with.
    #[must_use]
    pub const fn is_initial(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNROLLS: [u64; 5] = [1, 2, 3, 5, 8];

    #[test]
    fn every_step_belongs_to_one_outer_iteration_which_has_unroll_of_them() {
        for unroll in UNROLLS {
            let mut steps = (0..).map(Step);
            for outer in Outer(0).until(Outer(20)) {
                assert_eq!(steps.next(), Some(outer.first_step(unroll)));
                for place in 0..unroll {
                    let step = outer.step_at(place, unroll);
                    assert_eq!(step.outer(unroll), outer);
                    assert_eq!(step.is_first_of_outer(unroll), place == 0);
                    assert_eq!(step.is_last_of_outer(unroll), place + 1 == unroll);
                    assert!((outer.first_step(unroll)..outer.end_step(unroll)).contains(&step));
                }
                assert_eq!(outer.end_step(unroll), outer.next().first_step(unroll));
                assert_eq!(outer.end_step(unroll).since(outer.first_step(unroll)), unroll);
                steps.by_ref().take(unroll as usize - 1).for_each(drop);
            }
        }
    }

    #[test]
    fn a_multiple_is_passed_once() {
        for (every, unroll) in [(1, 3), (3, 1), (4, 3), (3, 3), (7, 2)] {
            let passed = |outer: Outer| outer.end_step(unroll).has_passed(every, unroll);
            let num_passed = Outer(0).until(Outer(42)).filter(|outer| passed(*outer)).count() as u64;
            let num_multiples = Outer(42).first_step(unroll).0 / every;
            assert_eq!(num_passed, num_multiples.min(42), "every {every} in iterations of {unroll}");
        }
    }

    #[test]
    fn each_outer_iteration_makes_one_version() {
        assert!(Outer(0).newest_version().is_initial());
        for outer in Outer(0).until(Outer(9)) {
            let (before, after) = (outer.newest_version(), outer.next().newest_version());
            assert_eq!((after.since(before), before.since(after)), (1, 0));
            for lag in 0..12 {
                let in_use = before.before(lag);
                assert_eq!(before.since(in_use), lag.min(outer.0));
                assert_eq!(in_use.is_initial(), lag >= outer.0);
            }
        }
    }

    #[test]
    fn counts_are_written_as_numbers() {
        let text = format!("{} {:>3} {:08}", Outer(7), Version(2), Step(200));
        assert_eq!(text, "7   2 00000200");
        assert_eq!(serde_json::json!([Step(3), Outer(1), Version(0)]), serde_json::json!([3, 1, 0]));
        assert_eq!([0, 41].map(|step| Step(step).logged()), [0, 41]);
        assert_eq!([-1, 0, 41].map(Step::from_logged), [0, 0, 41].map(Step));
        assert_eq!(Step(u64::MAX).logged(), i64::MAX);
        assert_eq!(Outer(1 << 62).checked_first_step(1), Some(Step(1 << 62)));
        assert_eq!([2, 4, u64::MAX].map(|unroll| Outer(1 << 62).checked_first_step(unroll)), [None; 3]);
    }
}
