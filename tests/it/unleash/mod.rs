//! Unleash as a source of flags, on the real server.

mod server;
