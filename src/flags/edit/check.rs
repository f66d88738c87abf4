//! Asks the evaluator whether a change does what was asked, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Features, NOBODY, Refusal, Wish};
use crate::flags::document::{Document, Flag};
use crate::flags::evaluate::Evaluator;
use crate::interaction::Stage;

/// Stands for every kind that nobody named: no interaction has an empty one.
const ANY_OTHER: &str = "";
/// Stands for every account that nobody named.
const ANYBODY: &str = "";

/// Accounts and kinds that are known to exist.
#[derive(Debug, Clone, Default)]
pub struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    /// Notes an account and a kind of it.
    pub fn add(&mut self, account: &str, kind: &str) {
        match self.0.get_mut(account) {
            Some(kinds) => _ = kinds.insert(kind.to_owned()),
            None => _ = self.0.insert(account.to_owned(), BTreeSet::from([kind.to_owned()])),
        }
    }
}

/// The kinds whose stage a wish is about: the one it names, or all that are known and any other.
pub(super) fn kinds_meant(document: &Document, wish: &Wish, known: &Known) -> BTreeSet<String> {
    match &wish.kind {
        Some(kind) => BTreeSet::from([kind.clone()]),
        None => {
            let mut kinds = named(&Features::of(document), "kind");
            kinds.extend(known.0.get(&wish.account).into_iter().flatten().cloned());
            kinds.insert(ANY_OTHER.to_owned());
            kinds
        }
    }
}

/// Where what is meant stands, and each kind of it.
pub(super) fn stands(
    document: &Document,
    after: &Document,
    wish: &Wish,
    known: &Known,
) -> (Stage, Vec<(String, Stage)>) {
    let from = document.stage(&wish.account, wish.kind.as_deref().unwrap_or(ANY_OTHER));
    let mut kinds = kinds_meant(document, wish, known);
    kinds.extend(kinds_meant(after, wish, known));
    let standing = |kind: String| {
        let stage = document.stage(&wish.account, &kind);
        (kind, stage)
    };
    (from, kinds.into_iter().map(standing).collect())
}

/// Refuses a change that misses its mark or hits others.
pub(super) fn check(
    before: &Document,
    after: &Document,
    wish: &Wish,
    known: &Known,
    features: &Features,
) -> Result<(), Refusal> {
    if wish.stage > Stage::Shadow && after.is_on(Flag::Kill, &wish.account, wish.kind.as_deref().unwrap_or(ANY_OTHER)) {
        return Err(Refusal::Kill { stage: wish.stage });
    }
    let mut meant = kinds_meant(before, wish, known);
    meant.extend(kinds_meant(after, wish, known));
    for kind in &meant {
        if let Some(stage) = Some(after.highest(&wish.account, kind)).filter(|stage| *stage != wish.stage) {
            return Err(held(features, after, wish, kind, stage));
        }
    }
    others(before, after, wish, known, &meant)
}

fn held(features: &Features, after: &Document, wish: &Wish, kind: &str, stage: Stage) -> Refusal {
    let who = match kind {
        ANY_OTHER => format!("account {}", wish.account),
        kind => format!("kind {kind} of account {}", wish.account),
    };
    let Some(flag) = Flag::of(stage).filter(|_| stage > wish.stage) else { return Refusal::Elsewhere { who, stage } };
    let after = Features::of(after);
    let by: Vec<_> = (0..after.strategies(flag).len())
        .filter(|n| alone(&after.root, flag, *n).is_some_and(|only| only.is_on(flag, &wish.account, kind)))
        .map(|n| described(features, flag, &after.strategies(flag)[n]))
        .collect();
    if by.is_empty() { Refusal::Elsewhere { who, stage } } else { Refusal::Held { who, flag, by } }
}

/// The flag with one strategy of it alone.
fn alone(root: &Value, flag: Flag, n: usize) -> Option<Evaluator> {
    let mut root = root.clone();
    let feature = root["features"].as_array_mut()?.iter_mut().find(|feature| feature["name"] == flag.name())?;
    let strategy = feature["strategies"][n].take();
    feature["strategies"] = json!([strategy]);
    Evaluator::compile(&root.to_string()).ok()
}

/// A strategy as its author knows it: its number in the flags as they are, and what it decides by.
fn described(features: &Features, flag: Flag, strategy: &Value) -> String {
    let number = features.strategies(flag).iter().position(|one| one == strategy);
    let number = number.map_or_else(String::new, |n| format!(" {}", n + 1));
    let constraints = strategy["constraints"].as_array().map_or(&[][..], Vec::as_slice);
    let mut terms: Vec<String> = constraints
        .iter()
        .map(|c| format!("{} {}", c["contextName"].as_str().unwrap_or("?"), c["operator"].as_str().unwrap_or("?")))
        .collect();
    if let Some(rollout) = strategy["parameters"]["rollout"].as_str() {
        terms.insert(0, format!("{rollout} %"));
    }
    if strategy["segments"].as_array().is_some_and(|segments| !segments.is_empty()) {
        terms.push("segments".to_owned());
    }
    let terms = if terms.is_empty() { "everybody".to_owned() } else { terms.join(", ") };
    format!("strategy{number} ({}: {terms})", strategy["name"].as_str().unwrap_or("?"))
}

/// Everybody but who was meant keeps every flag as it was.
fn others(
    before: &Document,
    after: &Document,
    wish: &Wish,
    known: &Known,
    meant: &BTreeSet<String>,
) -> Result<(), Refusal> {
    let features = Features::of(before);
    let (mut accounts, kinds) = (named(&features, "userId"), named(&features, "kind"));
    accounts.extend([ANYBODY.to_owned(), wish.account.clone()]);
    accounts.remove(NOBODY);
    let mut everybody = known.clone();
    for account in &accounts {
        for kind in kinds.iter().map(String::as_str).chain([ANY_OTHER]) {
            everybody.add(account, kind);
        }
    }
    let mut others = Vec::new();
    for (account, kinds) in &everybody.0 {
        for kind in kinds.iter().filter(|kind| *account != wish.account || !meant.contains(*kind)) {
            let changed = |flag: &Flag| before.is_on(*flag, account, kind) != after.is_on(*flag, account, kind);
            if Flag::ALL.iter().any(changed) && others.len() < 5 {
                others.push((
                    account.clone(),
                    kind.clone(),
                    before.highest(account, kind),
                    after.highest(account, kind),
                ));
            }
        }
    }
    if others.is_empty() { Ok(()) } else { Err(Refusal::Others { others }) }
}

/// Every name that the flags' lists compare with.
fn named(features: &Features, context: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for strategy in Flag::ALL.into_iter().flat_map(|flag| features.strategies(flag)) {
        for constraint in strategy["constraints"].as_array().into_iter().flatten() {
            if constraint["contextName"] == context {
                names.extend(
                    constraint["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned),
                );
            }
        }
        if let Some(ids) = strategy["parameters"]["userIds"].as_str().filter(|_| context == "userId") {
            names.extend(ids.split(',').map(|id| id.trim().to_owned()));
        }
    }
    names
}
