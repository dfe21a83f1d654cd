//! What the API server said, for people: kube's own text of a refusal ends with the answer as Rust
//! prints it.

use std::error::Error;

/// The text of `error`. Where an answer of the API server is behind it, that answer's message.
pub(crate) fn text(error: &(dyn Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(found) = cause {
        if let Some(kube::Error::Api(status)) = found.downcast_ref::<kube::Error>() {
            return if status.message.is_empty() {
                format!("the API server answers {} {}", status.code, status.reason)
            } else {
                format!("the API server answers {}: {}", status.code, status.message)
            };
        }
        cause = found.source();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outside: {0}")]
    struct Outside(#[source] kube::Error);

    #[test]
    fn an_answer_is_told_without_rust() {
        let status = Status::failure("quota is used up", "Forbidden").with_code(403);
        let error = Outside(kube::Error::Api(Box::new(status)));
        assert!(error.to_string().contains("Some("), "kube has mended it: this module can go");
        assert_eq!(text(&error), "the API server answers 403: quota is used up");
        let silent = kube::Error::Api(Box::new(Status::failure("", "Gone").with_code(410)));
        assert_eq!(text(&silent), "the API server answers 410 Gone");
    }

    #[test]
    fn other_errors_have_their_own_text() {
        assert_eq!(text(&std::io::Error::other("broken pipe")), "broken pipe");
    }
}
