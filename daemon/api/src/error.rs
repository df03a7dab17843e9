//! Errors as they travel: a name for programs, a sentence for people.

use nemos_model::certificate::NoCertificate;
use nemos_model::integrity::scrub::NotScrubbed;
use nemos_model::integrity::volume::UnknownVolume;
use nemos_model::job::InvalidJobId;
use nemos_model::keys;
use nemos_model::keys::slot::InvalidKeyslot;
use nemos_model::overlay::configuration::BadName;
use nemos_model::reset::UnknownScope;
use nemos_model::reset::keep::BadKeep;
use nemos_model::state::NotTaken;
use thiserror::Error;
use zbus::message::Header;
use zbus::names::ErrorName;
use zbus::{DBusError, Message};

macro_rules! error_kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident,)+) => {
        /// What kind of error, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorKind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl ErrorKind {
            /// All kinds.
            pub const ALL: &[ErrorKind] = &[$(ErrorKind::$kind),+];

            /// Its name on the bus.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorKind::$kind => concat!("org.nemos.Device1.Error.", stringify!($kind)),)+
                }
            }
        }
    };
}

error_kinds! {
    /// The caller may not ask this.
    NotAuthorized,
    /// An argument or an option is not what it must be.
    InvalidArgument,
    /// There is no such thing.
    NotFound,
    /// Something else has to end first.
    Busy,
    /// The device is not any more what the plan was made for.
    PlanChanged,
    /// This device cannot do that.
    NotSupported,
    /// The last way into the overlay's volume would go.
    LastKey,
    /// A file system is full.
    NoSpace,
    /// Something stored is damaged.
    Corrupt,
    /// It was tried, and it failed.
    Failed,
}

impl ErrorKind {
    /// The kind of that name; `None` if it is not one of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        ErrorKind::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// An error of the service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What failed, and what to do.
    pub message: String,
}

impl Error {
    /// An error of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.message,))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(self.kind.name())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

impl From<NotTaken> for Error {
    fn from(refusal: NotTaken) -> Self {
        let kind = match refusal {
            NotTaken::Busy(_) | NotTaken::KeptDataWaits(_) | NotTaken::OnTrial(_) => ErrorKind::Busy,
            NotTaken::Text(_) | NotTaken::OtherRequest(_) => ErrorKind::InvalidArgument,
            NotTaken::NoSuchJob(_) | NotTaken::NothingOnTrial => ErrorKind::NotFound,
            NotTaken::Refused(_) | NotTaken::NotTheLatest(_) => ErrorKind::Failed,
        };
        Error::new(kind, refusal.to_string())
    }
}

impl From<NoCertificate> for Error {
    fn from(refusal: NoCertificate) -> Self {
        let kind = match refusal {
            NoCertificate::NotAReset { .. } => ErrorKind::InvalidArgument,
            NoCertificate::NotDone { .. } => ErrorKind::Failed,
        };
        Error::new(kind, refusal.to_string())
    }
}

impl From<keys::Refused> for Error {
    fn from(refusal: keys::Refused) -> Self {
        use keys::Refused;
        let kind = match refusal {
            Refused::OfTheImage => ErrorKind::NotSupported,
            Refused::NoneOf(_) | Refused::NotInUse(_) => ErrorKind::NotFound,
            Refused::SeveralOf(_) | Refused::NotSealed => ErrorKind::InvalidArgument,
            Refused::LastKey(_) => ErrorKind::LastKey,
            Refused::Full => ErrorKind::NoSpace,
            Refused::Unconfirmed(_) | Refused::Interrupted => ErrorKind::Busy,
        };
        Error::new(kind, refusal.to_string())
    }
}

impl From<InvalidKeyslot> for Error {
    fn from(error: InvalidKeyslot) -> Self {
        Error::new(ErrorKind::NotFound, error.to_string())
    }
}

impl From<UnknownScope> for Error {
    fn from(error: UnknownScope) -> Self {
        Error::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

impl From<BadKeep> for Error {
    fn from(error: BadKeep) -> Self {
        let kind = if matches!(error, BadKeep::NotOpen { .. } | BadKeep::NoOverlay) {
            ErrorKind::Failed
        } else {
            ErrorKind::InvalidArgument
        };
        Error::new(kind, error.to_string())
    }
}

impl From<BadName> for Error {
    fn from(error: BadName) -> Self {
        Error::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

impl From<InvalidJobId> for Error {
    fn from(error: InvalidJobId) -> Self {
        Error::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

impl From<UnknownVolume> for Error {
    fn from(error: UnknownVolume) -> Self {
        Error::new(ErrorKind::NotFound, error.to_string())
    }
}

impl From<NotScrubbed> for Error {
    fn from(error: NotScrubbed) -> Self {
        let kind = match error {
            NotScrubbed::Running(_) => ErrorKind::Busy,
            NotScrubbed::NotRunning(_) => ErrorKind::NotFound,
            NotScrubbed::NotSupported(_) => ErrorKind::NotSupported,
        };
        Error::new(kind, error.to_string())
    }
}

/// Something of the service's own on the bus that failed.
impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Error::new(ErrorKind::Failed, error.to_string())
    }
}

/// A call that brought no result, seen from the caller.
#[derive(Debug, Clone, Error)]
pub enum CallError {
    /// The service answered, and refused.
    #[error(transparent)]
    Refused(Error),
    /// The service could not be asked, or its answer not be understood.
    #[error("nemosd cannot be reached: {0}")]
    Unreachable(zbus::Error),
}

impl From<zbus::Error> for CallError {
    fn from(error: zbus::Error) -> Self {
        let refused = match &error {
            zbus::Error::MethodError(name, message, _) => ErrorKind::from_name(name.as_str())
                .map(|kind| Error::new(kind, message.as_deref().unwrap_or("no reason given"))),
            _ => None,
        };
        refused.map_or(CallError::Unreachable(error), CallError::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_kind() {
        for kind in ErrorKind::ALL {
            assert!(kind.name().starts_with("org.nemos.Device1.Error."));
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
        assert_eq!(ErrorKind::from_name("org.freedesktop.DBus.Error.NoReply"), None);
    }

    #[test]
    fn name_and_message_reach_the_caller() {
        let call = Message::method_call(crate::PATH, "Request").build(&()).unwrap();
        let sent = Error::new(ErrorKind::Busy, "job 7 has not ended");
        let reply = sent.create_reply(&call.header()).unwrap();
        match CallError::from(zbus::Error::from(reply)) {
            CallError::Refused(received) => assert_eq!(received, sent),
            CallError::Unreachable(error) => panic!("{error}"),
        }
    }
}
