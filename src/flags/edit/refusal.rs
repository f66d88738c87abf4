//! Why the flags can't be changed as asked, and what to do instead.

use std::fmt;

use crate::flags::{Fault, Flag};
use crate::interaction::Stage;

/// Why the flags can't be changed as asked, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The evaluator can't compare with this name.
    Name {
        /// The name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The kill switch caps everybody at `shadow`.
    Kill {
        /// Where it was to stand.
        stage: Stage,
    },
    /// Enabling the flag would turn it on for others.
    Disabled {
        /// The flag.
        flag: Flag,
    },
    /// Strategies that commands don't touch keep a flag on.
    Held {
        /// Who.
        who: String,
        /// The flag.
        flag: Flag,
        /// The strategies, as a person knows them.
        by: Vec<String>,
    },
    /// It would not stand where it was asked to.
    Elsewhere {
        /// Who.
        who: String,
        /// Where it would stand.
        stage: Stage,
    },
    /// Others would change too.
    Others {
        /// Account, kind, and stages before and after; at most a few.
        others: Vec<(String, String, Stage, Stage)>,
    },
    /// The result is no flags document.
    Broken(Vec<Fault>),
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Name { name, why } => write!(f, "`{name}` can't be written into a flag: {why}"),
            Refusal::Kill { stage } => write!(
                f,
                "{} is on and caps everybody at shadow, so nothing comes to stand in {stage}; disable it first",
                Flag::Kill.name()
            ),
            Refusal::Disabled { flag } => write!(
                f,
                "{0} is disabled but has strategies for others, who would change with it; \
                 remove them, or enable {0} by hand if they are meant, and repeat the command",
                flag.name()
            ),
            Refusal::Held { who, flag, by } => write!(
                f,
                "{} stays on for {who} by {}; it decides for others too, so change it by hand (exclude the account \
                 there, say), and repeat the command",
                flag.name(),
                by.join(" and ")
            ),
            Refusal::Elsewhere { who, stage } => {
                write!(
                    f,
                    "{who} would stand in {stage} after the change, which is not what was asked; change the flags by hand"
                )
            }
            Refusal::Others { others } => {
                let lines = others.iter().map(|(account, kind, from, to)| match kind.as_str() {
                    "" => format!("account {account}: {from} to {to}"),
                    kind => format!("kind {kind} of account {account}: {from} to {to}"),
                });
                write!(
                    f,
                    "others would change with it; change the flags by hand: {}",
                    lines.collect::<Vec<_>>().join("; ")
                )
            }
            Refusal::Broken(faults) => {
                let lines = faults.iter().map(ToString::to_string).collect::<Vec<_>>();
                write!(f, "the result would be no flags document; change the flags by hand: {}", lines.join("; "))
            }
        }
    }
}
