//! Who asks: bearer tokens (RFC 6750) and what they allow. No I/O.

use axum::http::{HeaderMap, header};

use super::Problem;
use crate::config::tokens::{Scope, Token, digest};

/// Whom the API knows. Without tokens everybody may do everything: it then listens on this machine alone.
pub(super) struct Auth(Option<Vec<Token>>);

impl Auth {
    pub(super) fn new(tokens: Option<Vec<Token>>) -> Self {
        Self(tokens)
    }

    /// The token that a request carries; none where none is asked for.
    pub(super) fn who(&self, headers: &HeaderMap) -> Result<Option<&Token>, Problem> {
        let Some(tokens) = &self.0 else { return Ok(None) };
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Err(Problem::unauthorized("a bearer token is needed: send `Authorization: Bearer TOKEN`"));
        };
        let bearer = given.to_str().ok().and_then(|text| text.split_once(' '));
        let secret = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        let Some(secret) = secret else {
            return Err(Problem::unauthorized("the header Authorization must read `Bearer TOKEN`"));
        };
        let found = find(tokens, &digest(secret));
        found.map(Some).ok_or_else(|| Problem::unauthorized("this token is not known, or no longer"))
    }

    /// Whether `token` (none: nobody needs one) may do the work of `group`; none: of a group that is not known.
    pub(super) fn may_work_for(token: Option<&Token>, group: Option<&str>) -> Result<(), Problem> {
        let Some((token, groups)) = token.and_then(|token| Some((token, token.groups.as_ref()?))) else {
            return Ok(());
        };
        if group.is_some_and(|group| groups.iter().any(|known| known == group)) {
            return Ok(());
        }
        Err(Problem::not_its_group(&token.name, groups))
    }

    /// Whether `token` (none: nobody needs one) has `scope`.
    pub(super) fn may(token: Option<&Token>, scope: Scope) -> Result<(), Problem> {
        match token {
            Some(token) if !token.scopes.contains(&scope) => Err(Problem::forbidden(&token.name, scope)),
            _ => Ok(()),
        }
    }
}

/// Compares with every token in a time that does not depend on which one it is, nor on how much of it is right.
fn find<'a>(tokens: &'a [Token], wanted: &[u8; 32]) -> Option<&'a Token> {
    tokens.iter().fold(None, |found, token| {
        let differs = token.digest.iter().zip(wanted).fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(differs) == 0 { Some(token) } else { found }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        let token = |name: &str, scopes: &[Scope]| Token {
            name: name.to_owned(),
            scopes: scopes.to_vec(),
            groups: None,
            digest: digest(&format!("secret of {name}")),
        };
        Auth::new(Some(vec![token("a", &[Scope::Enqueue]), token("b", &[Scope::Read])]))
    }

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_is_known_by_its_hash_and_allows_its_scopes() {
        let auth = auth();
        let found = auth.who(&with("bearer secret of b")).unwrap();
        assert_eq!(found.unwrap().name, "b");
        assert!(Auth::may(found, Scope::Read).is_ok());
        assert_eq!(Auth::may(found, Scope::Enqueue).unwrap_err().status(), 403);
    }

    #[test]
    fn no_token_another_scheme_and_an_unknown_token_are_refused() {
        let auth = auth();
        for headers in [HeaderMap::new(), with("Basic YTpi"), with("Bearer"), with("Bearer secret of c")] {
            assert_eq!(auth.who(&headers).unwrap_err().status(), 401, "{headers:?}");
        }
    }

    #[test]
    fn without_tokens_nobody_is_asked() {
        assert!(Auth::new(None).who(&HeaderMap::new()).unwrap().is_none());
        assert_eq!(Auth::new(Some(Vec::new())).who(&with("Bearer x")).unwrap_err().status(), 401);
    }
}
