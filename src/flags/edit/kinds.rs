//! For which kinds of an account a flag is on: some, or all but some.

use std::collections::BTreeSet;

/// A set of kinds, of which there is no list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kinds {
    Only(BTreeSet<String>),
    AllBut(BTreeSet<String>),
}

impl Kinds {
    pub(super) fn none() -> Self {
        Self::Only(BTreeSet::new())
    }

    pub(super) fn all() -> Self {
        Self::AllBut(BTreeSet::new())
    }

    /// One kind, or all.
    pub(super) fn of(kind: Option<&str>) -> Self {
        kind.map_or_else(Self::all, |kind| Self::Only(BTreeSet::from([kind.to_owned()])))
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Self::none()
    }

    #[cfg(test)]
    fn contains(&self, kind: &str) -> bool {
        match self {
            Self::Only(kinds) => kinds.contains(kind),
            Self::AllBut(kinds) => !kinds.contains(kind),
        }
    }

    pub(super) fn with(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Only(a), Self::Only(b)) => Self::Only(a | b),
            (Self::AllBut(a), Self::AllBut(b)) => Self::AllBut(a & b),
            (Self::AllBut(a), Self::Only(b)) | (Self::Only(b), Self::AllBut(a)) => Self::AllBut(a - b),
        }
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Only(a), Self::Only(b)) => Self::Only(a - b),
            (Self::Only(a), Self::AllBut(b)) => Self::Only(a & b),
            (Self::AllBut(a), Self::Only(b)) => Self::AllBut(a | b),
            (Self::AllBut(a), Self::AllBut(b)) => Self::Only(b - a),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kinds> {
        let names = proptest::collection::btree_set("[abcd]", 0..4);
        (any::<bool>(), names).prop_map(|(all, names)| if all { Kinds::AllBut(names) } else { Kinds::Only(names) })
    }

    proptest! {
        #[test]
        fn with_and_without_are_those_of_sets(a in kinds(), b in kinds(), kind in "[abcde]") {
            prop_assert_eq!(a.with(&b).contains(&kind), a.contains(&kind) || b.contains(&kind));
            prop_assert_eq!(a.without(&b).contains(&kind), a.contains(&kind) && !b.contains(&kind));
        }
    }
}
