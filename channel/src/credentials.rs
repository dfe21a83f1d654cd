//! NATS credentials files (`.creds`): a user's JWT and the seed that signs the server's nonce,
//! between dashes.

/// What a credentials file holds. Not shown by `Debug`: the seed is a private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's JWT, signed by an account.
    pub jwt: String,
    /// The user's private key, encoded (`SU…`).
    pub seed: String,
}

/// The text is no credentials file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must hold a user JWT and an NKEY seed, as `nsc generate creds` writes them")]
pub struct Error;

impl Credentials {
    /// Reads the text of a credentials file.
    ///
    /// # Errors
    /// [`Error`] when one of the two parts is not there.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let section = |kind: &str| {
            let mut lines = text.lines().map(str::trim);
            lines.find(|line| line.starts_with("-----BEGIN") && line.contains(kind))?;
            lines
                .find(|line| !line.is_empty())
                .filter(|line| !line.starts_with('-'))
                .map(str::to_owned)
        };
        let (Some(jwt), Some(seed)) = (section("USER JWT"), section("NKEY SEED")) else {
            return Err(Error);
        };
        Ok(Self { jwt, seed })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nsc generate creds` writes it.
    const FILE: &str = "\
-----BEGIN NATS USER JWT-----
eyJ0eXAi.eyJqdGki.c2ln
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.
NKEYs are sensitive and should be treated as secrets.

-----BEGIN USER NKEY SEED-----
SUACSECRET
------END USER NKEY SEED------

*************************************************************
";

    #[test]
    fn both_parts_are_found() {
        for text in [FILE.to_owned(), FILE.replace('\n', "\r\n")] {
            let found = Credentials::parse(&text).unwrap();
            assert_eq!(
                (found.jwt.as_str(), found.seed.as_str()),
                ("eyJ0eXAi.eyJqdGki.c2ln", "SUACSECRET")
            );
            assert!(!format!("{found:?}").contains("SUA"), "the seed is not shown");
        }
    }

    #[test]
    fn a_file_without_one_of_them_is_refused() {
        let half = FILE.split("****").next().unwrap();
        let empty = FILE.replace("SUACSECRET\n", "");
        for text in ["", "SUACSECRET", half, &empty] {
            assert_eq!(Credentials::parse(text), Err(Error), "{text:?}");
        }
    }
}
