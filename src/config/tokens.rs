//! The file of tokens: who may ask the API for what.
//!
//! A token itself is in no file: the file holds its SHA-256, or the name of a variable that holds the token.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::router::request::name_fault;

/// What a token allows. None contains another.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Put work in.
    Enqueue,
    /// Look work and metrics up, and wait for results.
    Read,
    /// Call off what waits.
    Operate,
    /// Keep and end what the executor call gave a runner.
    Work,
}

impl Scope {
    /// The name in the file, in answers and on a screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Enqueue => "enqueue",
            Scope::Read => "read",
            Scope::Operate => "operate",
            Scope::Work => "work",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A caller that is known.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// For logs.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The groups whose work it may take and end; none: of all.
    pub groups: Option<Vec<String>>,
    /// SHA-256 of the token.
    pub digest: [u8; 32],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("scopes", &self.scopes)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a token, as the file has it in hexadecimal.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tokens: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    scopes: Vec<Scope>,
    groups: Option<Vec<String>>,
    sha256: Option<String>,
    secret_env: Option<String>,
}

/// A token that a person chose may be guessed; one that `crossover token new` makes has 68 characters.
const SHORTEST: usize = 20;

/// Reads the file; every fault, without a secret, where it can't be used.
pub(super) fn read(path: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Token>, Vec<String>> {
    let said = |problem: String| vec![format!("{}: {problem}", path.display())];
    let text = std::fs::read_to_string(path)
        .map_err(|e| said(format!("can't be read: {e}; make one with `crossover token new`")))?;
    // Only the parser's words: its Display would quote the line.
    let file: File = toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        said(format!("line {}: {}", line.unwrap_or(1), error.message()))
    })?;
    let (mut tokens, mut faults) = (Vec::<Token>::new(), Vec::new());
    for entry in file.tokens {
        let name = entry.name.clone();
        if tokens.iter().any(|known| known.name == name) {
            faults.push(format!("{}: token `{name}` comes twice", path.display()));
        }
        match entry.token(&variable) {
            Ok(token) => tokens.push(token),
            Err(problem) => faults.push(format!("{}: token `{name}`: {problem}", path.display())),
        }
    }
    if faults.is_empty() { Ok(tokens) } else { Err(faults) }
}

impl Entry {
    fn token(self, variable: &impl Fn(&str) -> Option<String>) -> Result<Token, String> {
        if self.name.is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control) {
            return Err("a name has 1 to 100 characters and no control characters".to_owned());
        }
        if self.scopes.is_empty() {
            return Err("has no scopes; give it some of enqueue, read, operate, work".to_owned());
        }
        if let Some(groups) = &self.groups {
            if !self.scopes.contains(&Scope::Work) {
                return Err("has groups, which say whose work it may do, and not the scope work".to_owned());
            }
            if groups.is_empty() {
                return Err("groups is empty; leave it out for all groups".to_owned());
            }
            if let Some(fault) = groups.iter().find_map(|group| name_fault(group, 100)) {
                return Err(format!("the name of a group {fault}"));
            }
        }
        let digest = match (self.sha256, self.secret_env) {
            (Some(hex), None) => unhex(&hex).ok_or("sha256 must have 64 hexadecimal digits")?,
            (None, Some(name)) => match variable(&name) {
                Some(secret) if secret.len() >= SHORTEST => digest(&secret),
                Some(_) => return Err(format!("the variable {name} must hold {SHORTEST} characters or more")),
                None => return Err(format!("the variable {name} is not set")),
            },
            _ => return Err("needs either sha256 or secret_env".to_owned()),
        };
        Ok(Token { name: self.name, scopes: self.scopes, groups: self.groups, digest })
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::hex;

    fn read_text(text: &str) -> Result<Vec<Token>, Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path(), |name| (name == "SET").then(|| "a secret of twenty and more".to_owned()))
    }

    #[test]
    fn a_token_is_known_by_its_hash_or_by_a_variable() {
        let hash = hex(&digest("t"));
        let text = format!(
            "[[tokens]]\nname = \"a\"\nscopes = [\"enqueue\", \"read\"]\nsha256 = \"{hash}\"\n\
             [[tokens]]\nname = \"b\"\nscopes = [\"operate\"]\nsecret_env = \"SET\"\n"
        );
        let tokens = read_text(&text).unwrap();
        assert_eq!((tokens[0].digest, &*tokens[0].scopes), (digest("t"), &[Scope::Enqueue, Scope::Read][..]));
        assert_eq!(tokens[1].digest, digest("a secret of twenty and more"));
    }

    #[test]
    fn a_token_may_be_for_the_work_of_some_groups() {
        let entry = |scopes: &str, groups: &str| {
            let hash = hex(&digest("t"));
            read_text(&format!(
                "[[tokens]]\nname = \"a\"\nscopes = [{scopes}]\ngroups = {groups}\nsha256 = \"{hash}\"\n"
            ))
        };
        let tokens = entry("\"work\"", "[\"remote.mail\"]").unwrap();
        assert_eq!(tokens[0].groups.as_deref(), Some(&["remote.mail".to_owned()][..]));
        for (scopes, groups, said) in [
            ("\"read\"", "[\"remote.mail\"]", "not the scope work"),
            ("\"work\"", "[]", "leave it out"),
            ("\"work\"", "[\"\"]", "is empty"),
        ] {
            let faults = entry(scopes, groups).unwrap_err();
            assert!(faults[0].contains(said), "{faults:?}");
        }
    }

    #[test]
    fn every_fault_is_named_and_no_secret_is_repeated() {
        let faults = read_text(
            "[[tokens]]\nname = \"a\"\nscopes = []\nsha256 = \"hunter2\"\n\
             [[tokens]]\nname = \"b\"\nscopes = [\"read\"]\nsha256 = \"hunter2\"\n\
             [[tokens]]\nname = \"c\"\nscopes = [\"read\"]\nsecret_env = \"UNSET\"\n\
             [[tokens]]\nname = \"d\"\nscopes = [\"read\"]\n",
        )
        .unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(!faults.concat().contains("hunter2"), "{faults:?}");
        let broken = read_text("[[tokens]]\nname = \"a\"\nsecret = \"hunter2\"\n").unwrap_err();
        assert!(broken[0].contains("line") && !broken[0].contains("hunter2"), "{broken:?}");
    }
}
