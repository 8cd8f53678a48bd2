//! Which samples have which role, and which samples make which batch.
//!
//! Both are pure functions of the seed and the numbers of role, epoch and batch: any batch can be
//! asked for at any time, so a resumed run goes on exactly and parallel loaders need no shared state.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mlomae_model::rng::{Purpose, keyed, shuffle};

/// What a sample of the training split is used for. The test role is the data's own test split,
/// which no part of training opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Level 1, without labels.
    Pretrain,
    /// Level 2.
    Finetune,
    /// Level 3.
    Validation,
}

impl Role {
    /// The three roles of the training split.
    pub const ALL: [Self; 3] = [Self::Pretrain, Self::Finetune, Self::Validation];

    /// The name as written in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
            Self::Validation => "validation",
        }
    }

    const fn order_purpose(self) -> Purpose {
        match self {
            Self::Pretrain => Purpose::PretrainOrder,
            Self::Finetune => Purpose::FinetuneOrder,
            Self::Validation => Purpose::ValidationOrder,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A role has fewer samples than its batch.
    #[error("the {role} role needs at least one batch of {batch} samples, it has {num_samples}")]
    TooFew {
        /// The role.
        role: Role,
        /// Samples of a batch.
        batch: usize,
        /// Samples of the role.
        num_samples: usize,
    },
    /// A labelled role got samples without labels.
    #[error("the labelled roles need labels; samples without a label: {0}")]
    Unlabelled(usize),
}

/// Shares of the training split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Of level 1.
    pub pretrain: f64,
    /// Of level 2.
    pub finetune: f64,
    /// Of level 3.
    pub validation: f64,
}

/// The samples of each role, as indices into the training split, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    indices: [Arc<[usize]>; 3],
}

impl Roles {
    /// Divides samples with these labels, stratified: in every role, each label's share differs
    /// from its share of the whole by less than one sample at either end.
    ///
    /// `max_samples` first draws that many, stratified too. Samples without a label can only pretrain.
    ///
    /// # Errors
    /// [`PlanError::Unlabelled`] if no sample has a label.
    pub fn split(
        labels: &[Option<i32>],
        shares: Shares,
        max_samples: Option<usize>,
        seed: u64,
    ) -> Result<Self, PlanError> {
        let mut order = stratified_order(labels, seed);
        if let Some(max_samples) = max_samples {
            order.truncate(max_samples);
        }
        let num_samples = order.len() as f64;
        let (labelled, unlabelled): (Vec<usize>, Vec<usize>) =
            order.into_iter().partition(|index| labels[*index].is_some());
        if labelled.is_empty() {
            return Err(PlanError::Unlabelled(unlabelled.len()));
        }
        let count = |share: f64| (share * num_samples).round() as usize;
        let mut rest = labelled.into_iter();
        let validation: Vec<usize> = rest.by_ref().take(count(shares.validation)).collect();
        let finetune: Vec<usize> = rest.by_ref().take(count(shares.finetune)).collect();
        let pretrain: Vec<usize> = rest.chain(unlabelled).take(count(shares.pretrain).max(1)).collect();
        let roles = Self {
            indices: [pretrain, finetune, validation].map(|mut indices| {
                indices.sort_unstable();
                indices.into()
            }),
        };
        assert!(roles.is_disjoint(labels.len()), "invariant: no sample has two roles");
        Ok(roles)
    }

    /// The indices of a role.
    #[must_use]
    pub fn indices(&self, role: Role) -> &Arc<[usize]> {
        &self.indices[role.index()]
    }

    /// Whether every index is below `num_samples` and in at most one role.
    #[must_use]
    pub fn is_disjoint(&self, num_samples: usize) -> bool {
        let mut seen = vec![false; num_samples];
        self.indices
            .iter()
            .flat_map(|indices| indices.iter())
            .all(|index| seen.get_mut(*index).is_some_and(|seen| !std::mem::replace(seen, true)))
    }

    /// A number that changes when any sample changes its role (FNV-1a), to recognise the same division
    /// when a run is resumed.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |word: u64| {
            for byte in word.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for indices in &self.indices {
            mix(indices.len() as u64);
            indices.iter().for_each(|index| mix(*index as u64));
        }
        hash
    }
}

/// All samples in an order of which every stretch is stratified: each label's samples, shuffled, are
/// spread evenly over the whole.
fn stratified_order(labels: &[Option<i32>], seed: u64) -> Vec<usize> {
    let mut groups: BTreeMap<Option<i32>, Vec<usize>> = BTreeMap::new();
    for (index, label) in labels.iter().enumerate() {
        groups.entry(*label).or_default().push(index);
    }
    let mut placed: Vec<(f64, usize, usize)> = Vec::with_capacity(labels.len());
    for (group, (label, mut indices)) in groups.into_iter().enumerate() {
        let label = label.map_or(u64::MAX, |label| u64::from(label.cast_unsigned()));
        shuffle(&mut indices, &mut keyed(seed, Purpose::Roles, label, 0));
        let num = indices.len() as f64;
        let place = |(rank, index)| ((rank as f64 + 0.5) / num, group, index);
        placed.extend(indices.into_iter().enumerate().map(place));
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    placed.into_iter().map(|(_, _, index)| index).collect()
}

/// The samples of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBatch {
    /// How often the role has been gone through before.
    pub epoch: u64,
    /// Indices into the training split, in the batch's order.
    pub indices: Vec<usize>,
}

/// Which samples make which batch of which role.
///
/// In each epoch a role is gone through once in an order of its own; the samples that do not fill a
/// last batch are left out of that epoch. Cloning is cheap; the cache of the last order is no state.
#[derive(Debug, Clone)]
pub struct EpochPlan {
    roles: Roles,
    batches: [usize; 3],
    seed: u64,
    cached: [Option<(u64, Arc<[usize]>)>; 3],
}

impl EpochPlan {
    /// A plan with `batches` samples in a batch of pretrain, finetune and validation.
    ///
    /// # Errors
    /// [`PlanError::TooFew`] for a role that cannot fill one batch.
    pub fn new(roles: Roles, batches: [usize; 3], seed: u64) -> Result<Self, PlanError> {
        for role in Role::ALL {
            let (batch, num_samples) = (batches[role.index()], roles.indices(role).len());
            if batch == 0 || num_samples < batch {
                return Err(PlanError::TooFew { role, batch, num_samples });
            }
        }
        Ok(Self { roles, batches, seed, cached: [None, None, None] })
    }

    /// Batch sizes of the roles in the order of [`Role::ALL`].
    #[must_use]
    pub const fn batch_sizes(&self) -> [usize; 3] {
        self.batches
    }

    /// The roles.
    #[must_use]
    pub const fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Whole batches in an epoch of `role`.
    #[must_use]
    pub fn batches_per_epoch(&self, role: Role) -> u64 {
        (self.roles.indices(role).len() / self.batches[role.index()]) as u64
    }

    /// Batch `number` of `role`, counted from 0 over all epochs. In iteration j with unroll k, level
    /// 1 takes the pretrain batches j·k to j·k + k − 1, and levels 2 and 3 take batch j of their roles.
    pub fn batch(&mut self, role: Role, number: u64) -> PlannedBatch {
        let per_epoch = self.batches_per_epoch(role);
        let (epoch, place) = (number / per_epoch, (number % per_epoch) as usize);
        let order = self.order(role, epoch);
        let batch = self.batches[role.index()];
        PlannedBatch { epoch, indices: order[place * batch..(place + 1) * batch].to_vec() }
    }

    /// A fixed choice of `num` samples of `role` for the panel, ascending.
    #[must_use]
    pub fn panel(&self, role: Role, num: usize) -> Vec<usize> {
        let mut indices = self.panel_order(role);
        indices.truncate(num);
        indices.sort_unstable();
        indices
    }

    /// All samples of `role` in the order in which the panel takes them.
    #[must_use]
    pub fn panel_order(&self, role: Role) -> Vec<usize> {
        let mut indices = self.roles.indices(role).to_vec();
        shuffle(&mut indices, &mut keyed(self.seed, Purpose::Panel, role as u64, 0));
        indices
    }

    fn order(&mut self, role: Role, epoch: u64) -> Arc<[usize]> {
        if let Some((cached_epoch, order)) = &self.cached[role.index()]
            && *cached_epoch == epoch
        {
            return Arc::clone(order);
        }
        let mut order = self.roles.indices(role).to_vec();
        shuffle(&mut order, &mut keyed(self.seed, role.order_purpose(), epoch, 0));
        let order: Arc<[usize]> = order.into();
        self.cached[role.index()] = Some((epoch, Arc::clone(&order)));
        order
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHARES: Shares = Shares { pretrain: 0.6, finetune: 0.2, validation: 0.2 };

    fn labels(num: usize, num_classes: i32, seed: u64) -> Vec<Option<i32>> {
        let mut rng = keyed(seed, Purpose::Eval, 0, 0);
        (0..num)
            .map(|_| {
                // Skewed on purpose: low classes are more frequent.
                let draw = mlomae_model::rng::uniform(&mut rng).powi(2);
                Some((draw * f64::from(num_classes)) as i32)
            })
            .collect()
    }

    fn count(labels: &[Option<i32>], indices: &[usize], class: i32) -> usize {
        indices.iter().filter(|index| labels[**index] == Some(class)).count()
    }

    #[test]
    fn roles_are_disjoint_cover_their_shares_and_are_stratified() {
        for seed in 0..20 {
            let labels = labels(500 + 37 * seed as usize, 7, seed);
            let roles = Roles::split(&labels, SHARES, None, seed).expect("labels");
            assert!(roles.is_disjoint(labels.len()));
            let total: usize = Role::ALL.iter().map(|role| roles.indices(*role).len()).sum();
            assert!(total.abs_diff(labels.len()) <= 1);
            let all: Vec<usize> = (0..labels.len()).collect();
            for (role, share) in [(Role::Pretrain, 0.6), (Role::Finetune, 0.2), (Role::Validation, 0.2)] {
                for class in 0..7 {
                    let got = count(&labels, roles.indices(role), class) as f64;
                    let wanted = share * count(&labels, &all, class) as f64;
                    assert!((got - wanted).abs() <= 2.0, "{role} {class}: {got} of {wanted}");
                }
            }
        }
    }

    #[test]
    fn roles_depend_on_the_seed_alone() {
        let labels = labels(300, 5, 0);
        let split = |seed| Roles::split(&labels, SHARES, None, seed).expect("labels");
        assert_eq!(split(1), split(1));
        assert_ne!(split(1).fingerprint(), split(2).fingerprint());
    }

    #[test]
    fn a_limit_draws_a_stratified_part() {
        let labels = labels(1000, 4, 3);
        let roles = Roles::split(&labels, SHARES, Some(100), 3).expect("labels");
        let drawn: Vec<usize> = Role::ALL.iter().flat_map(|role| roles.indices(*role).to_vec()).collect();
        assert_eq!(drawn.len(), 100);
        let all: Vec<usize> = (0..1000).collect();
        for class in 0..4 {
            let wanted = count(&labels, &all, class) as f64 / 10.0;
            let got = count(&labels, &drawn, class) as f64;
            assert!((got - wanted).abs() <= 1.0, "{class}: {got} of {wanted}");
        }
    }

    #[test]
    fn samples_without_labels_only_pretrain() {
        let mut labels = labels(100, 2, 0);
        labels.extend([None; 100]);
        let roles = Roles::split(&labels, SHARES, None, 0).expect("labels");
        for role in [Role::Finetune, Role::Validation] {
            assert!(roles.indices(role).iter().all(|index| labels[*index].is_some()));
        }
        assert!(roles.indices(Role::Pretrain).iter().any(|index| labels[*index].is_none()));
        assert_eq!(Roles::split(&[None; 8], SHARES, None, 0), Err(PlanError::Unlabelled(8)));
    }

    fn plan(seed: u64) -> EpochPlan {
        let roles = Roles::split(&labels(203, 3, 1), SHARES, None, 1).expect("labels");
        EpochPlan::new(roles, [16, 8, 4], seed).expect("enough samples")
    }

    #[test]
    fn an_epoch_sees_no_sample_twice_and_epochs_differ() {
        let mut plan = plan(5);
        for role in Role::ALL {
            let per_epoch = plan.batches_per_epoch(role);
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let batches = epoch * per_epoch..(epoch + 1) * per_epoch;
                let mut order = Vec::new();
                for number in batches {
                    let batch = plan.batch(role, number);
                    assert_eq!(batch.epoch, epoch);
                    order.extend(batch.indices);
                }
                let once: BTreeSet<usize> = order.iter().copied().collect();
                assert_eq!(once.len(), order.len());
                let role_indices = plan.roles().indices(role).clone();
                assert!(once.iter().all(|index| role_indices.contains(index)));
                orders.push(order);
            }
            assert_ne!(orders[0], orders[1]);
            assert_ne!(orders[1], orders[2]);
        }
    }

    #[test]
    fn any_batch_can_be_asked_for_at_any_time() {
        let mut forward = plan(5);
        let in_order: Vec<PlannedBatch> = (0..50).map(|n| forward.batch(Role::Pretrain, n)).collect();
        let mut rng = keyed(0, Purpose::Eval, 0, 0);
        let mut numbers: Vec<u64> = (0..50).collect();
        shuffle(&mut numbers, &mut rng);
        let mut jumping = plan(5);
        for number in numbers {
            assert_eq!(jumping.batch(Role::Pretrain, number), in_order[number as usize]);
        }
        assert_ne!(plan(6).batch(Role::Pretrain, 0), in_order[0]);
    }

    #[test]
    fn a_role_smaller_than_its_batch_is_refused_by_name() {
        let roles = Roles::split(&labels(50, 3, 1), SHARES, None, 1).expect("labels");
        let error = EpochPlan::new(roles, [16, 8, 64], 0).expect_err("refused");
        assert_eq!(error.to_string(), "the validation role needs at least one batch of 64 samples, it has 10");
    }

    #[test]
    fn the_panel_is_fixed() {
        let panel = plan(5).panel(Role::Validation, 6);
        assert_eq!(panel.len(), 6);
        assert_eq!(panel, plan(5).panel(Role::Validation, 6));
        assert!(panel.is_sorted());
    }
}
