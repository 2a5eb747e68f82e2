//! Rules of the protocol, each broken on purpose in the world around the machines:
//! exploration must find out.

use super::explorer::{First, explore};
use super::operations::Operation::{self, *};
use super::operations::*;
use super::scripts::*;
use super::world::Setting;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    IgnoreIssueNumbers,
    AcknowledgeBeforeFlush,
    AcknowledgeBeforeTheKernelDropped,
    WaitForOwnRecalls,
    GrantWhatHoldsWaitersUp,
    RenewDespiteAnOldRecall,
    FenceWithoutWaiting,
    ForgetUnansweredRecalls,
    AcknowledgementsTakeLaterGrants,
    RepeatedAnswersEarnNothing,
    NamesDropUnderTheDirectoryLock,
    AcknowledgeBeforeEarlierDuties,
    TermBeginsWithTheConnection,
}

const STATES_MAX: usize = 2_000_000;

/// The way to what a broken rule breaks.
fn broken(mutation: Mutation, setting: Setting) -> String {
    let setting = Setting { broken: Some(mutation), ..setting };
    match explore(&setting, First::Nearest, STATES_MAX) {
        Ok(states) => panic!("{mutation:?} goes unnoticed in {states} states"),
        Err(violation) => {
            println!("{mutation:?}: {violation}");
            violation.what
        }
    }
}

const NOTHING: &[Operation] = &[];

#[test]
fn grants_that_a_recall_overtook_must_be_void() {
    let what = broken(Mutation::IgnoreIssueNumbers, setting([&[Read, Read], &[Write], NOTHING]));
    assert!(what.contains("without holding it"), "{what}");
}

#[test]
fn unwritten_changes_are_flushed_before_they_are_given_up() {
    let setting = Setting { exclusive: true, ..setting([&[Write, Write], &[Read], NOTHING]) };
    let what = broken(Mutation::AcknowledgeBeforeFlush, setting);
    assert!(what.contains("after 2 was written"), "{what}");
}

#[test]
fn the_kernel_drops_before_rights_are_given_up() {
    let setting = setting([&[Read, Read], &[Write], NOTHING]);
    let what = broken(Mutation::AcknowledgeBeforeTheKernelDropped, setting);
    assert!(what.contains("after 1 was written"), "{what}");
}

#[test]
fn an_operation_does_not_wait_for_its_own_session() {
    let setting = Setting { page_locks: true, ..setting([&[Read, Write], NOTHING, NOTHING]) };
    assert!(explore(&setting, First::Nearest, STATES_MAX).is_ok());
    let what = broken(Mutation::WaitForOwnRecalls, setting);
    assert!(what.contains("does not complete"), "{what}");
}

#[test]
fn nothing_is_granted_that_holds_a_waiter_up() {
    let what = broken(Mutation::GrantWhatHoldsWaitersUp, setting([&[Read, Read], &[Write], &[Read]]));
    assert!(what.contains("a second time"), "{what}");
}

#[test]
fn a_session_with_an_old_recall_is_not_renewed() {
    let setting = Setting { time: true, ..setting([&[Read, Read], &[Write], NOTHING]) };
    broken(Mutation::RenewDespiteAnOldRecall, setting);
}

#[test]
fn fencing_waits_for_the_term() {
    let setting = Setting { time: true, ..setting([&[Read, Read], &[Write], NOTHING]) };
    broken(Mutation::FenceWithoutWaiting, setting);
}

#[test]
fn recalls_that_were_lost_are_sent_again() {
    let setting = Setting { breaks: [1, 0, 0], ..setting([&[Read], &[Write], NOTHING]) };
    let what = broken(Mutation::ForgetUnansweredRecalls, setting);
    assert!(what.contains("does not complete"), "{what}");
}

#[test]
fn an_acknowledgement_does_not_take_later_grants() {
    let setting = setting([&[Read, Forget(FILE), Read, Read], &[Write], NOTHING]);
    let what = broken(Mutation::AcknowledgementsTakeLaterGrants, setting);
    assert!(what.contains("without holding it"), "{what}");
}

#[test]
fn an_answer_that_is_repeated_still_earns() {
    let setting =
        Setting { in_flight: [2, 1, 1], breaks: [1, 0, 0], ..setting([&[Write, Read, Read], &[Read], NOTHING]) };
    let what = broken(Mutation::RepeatedAnswersEarnNothing, setting);
    assert!(what.contains("after 1 was written"), "{what}");
}

#[test]
fn two_creators_do_not_wait_for_each_others_kernel() {
    let setting = setting([&[Lookup, Create], &[Lookup, Create], NOTHING]);
    let what = broken(Mutation::NamesDropUnderTheDirectoryLock, setting);
    assert!(what.contains("does not complete"), "{what}");
}

#[test]
fn two_writers_do_not_wait_for_each_others_pages() {
    let setting = Setting { page_locks: true, ..setting([&[Read, Write], &[Read, Write], NOTHING]) };
    let violation = explore(&setting, First::Nearest, STATES_MAX).expect_err("the kernel may drop bytes");
    assert!(violation.what.contains("does not complete"), "{violation}");
}

#[test]
fn only_a_change_of_its_own_in_flight_lets_a_mount_answer_what_others_know_is_old() {
    let setting = Setting { strict: true, in_flight: [2, 1, 1], ..setting([&[Read, Write, Read], &[Read], NOTHING]) };
    let violation = explore(&setting, First::Nearest, STATES_MAX).expect_err("mounts are stricter than they promise");
    assert!(violation.what.contains("after 1 was read"), "{violation}");
    assert!(explore(&Setting { strict: false, ..setting }, First::Nearest, STATES_MAX).is_ok());
}

#[test]
fn a_recall_with_nothing_to_do_waits_for_the_duties_of_earlier_ones() {
    let setting = setting([&[Lookup, Stat, Stat], &[Change], &[Create]]);
    let what = broken(Mutation::AcknowledgeBeforeEarlierDuties, setting);
    assert!(what.contains("after 1 was written"), "{what}");
}

#[test]
fn a_term_does_not_begin_with_a_connection() {
    let scripts: Each<&[Operation]> = [&[Stat, Read, Read], &[Change], &[Write]];
    let setting = Setting { time: true, breaks: [1, 0, 0], ..setting(scripts) };
    broken(Mutation::TermBeginsWithTheConnection, setting);
}
