//! Prunes of whole repositories.
