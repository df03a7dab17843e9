//! What a device remembers, whatever happens to it.

use super::*;
use crate::job::{MAX_INTERRUPTIONS, MAX_TEXT};

use crate::overlay::{Mode, Within};
use crate::partitions::Partition;
use crate::reset::Keeping;
use proptest::prelude::*;
use uuid::Uuid;

fn somebody() -> Requester {
    Requester { uid: 1000, user: Some("admin".into()), process: None, label: None }
}

fn reset(scope: Scope, keep: &[&str]) -> Wanted {
    let keep = Keep::Paths(keep.iter().map(|path| path.parse().unwrap()).collect());
    Wanted::Reset { scope, keep, plan: None }
}

fn factory() -> Request {
    Request { wanted: reset(Scope::Factory, &[]), by: somebody(), key: None, not_before: None, reboot: false }
}

fn id(n: u128) -> JobId {
    JobId::from_random(n)
}

fn provisioned() -> DeviceState {
    DeviceState { volume: Volume::Provisioned(identity(7)), ..DeviceState::shipped() }
}

fn keeping() -> Request {
    Request { wanted: reset(Scope::Factory, &["/etc/hostname"]), ..factory() }
}

/// A new volume key for all that is there.
fn keeping_all() -> Request {
    let keep = Keep::Everything(Partition::Home);
    Request { wanted: Wanted::Reset { scope: Scope::Overlay, keep, plan: None }, ..factory() }
}

/// Carries out the next step of the job, as the initrd does.
fn do_step(state: &mut DeviceState, job: JobId) {
    let outcome = match state.job(job).unwrap().next_step().unwrap() {
        Step::Survey => Outcome::Surveyed(Survey::default()),
        Step::CreateVolume | Step::TakeOver => Outcome::Volume(identity(8)),
        Step::Audit => Outcome::Audited(Audit { checks: Vec::new() }),
        _ => Outcome::Done,
    };
    state.step_done(job, outcome, Timestamp(9)).unwrap();
}

fn finish(state: &mut DeviceState, job: JobId) {
    while state.job(job).unwrap().next_step().is_some() {
        do_step(state, job);
    }
}

/// Carries out the job up to that step.
fn reach(state: &mut DeviceState, job: JobId, step: Step) {
    while state.job(job).unwrap().next_step() != Some(step) {
        do_step(state, job);
    }
}

/// What a boot begins with.
fn identity(number: u128) -> Identity {
    Identity { uuid: Uuid::from_u128(number), key: None }
}

fn boots(state: &mut DeviceState, now: u64) -> AtBoot {
    state.begin_at_boot(id(1000 + u128::from(now)), false, Timestamp(now)).unwrap()
}

/// Boots until the job is given up at its next step.
fn fails(state: &mut DeviceState, job: JobId) {
    for _ in 0..3 {
        if state.job(job).unwrap().state != JobState::Running {
            assert_eq!(boots(state, 2), AtBoot::CarryOut(job));
        }
        state.attempt_failed(job, "broken".into(), Timestamp(3)).unwrap();
    }
    assert_eq!(state.job(job).unwrap().state, JobState::Failed);
}

#[test]
fn the_first_boot_provisions_and_the_second_has_nothing_to_do() {
    let mut state = DeviceState::shipped();
    let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
    assert_eq!(state.job(job).unwrap().kind, Kind::Provision);
    finish(&mut state, job);
    assert_eq!(state.job(job).unwrap().state, JobState::Done);
    assert_eq!(boots(&mut state, 2), AtBoot::Nothing);
    assert!(matches!(state.volume, Volume::Provisioned(_)));
}

#[test]
fn a_volume_that_came_with_the_image_is_taken_over_once_and_a_reset_makes_the_devices_own() {
    let mut state = DeviceState::shipped_with_volume();
    let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
    assert!(state.job(job).unwrap().all_steps().iter().all(|step| step.erases().is_none()), "nothing is erased for it");
    finish(&mut state, job);
    assert_eq!(state.volume, Volume::TakenOver(identity(8)));
    assert!(state.volume.is(&identity(8)));
    assert_eq!(boots(&mut state, 2), AtBoot::Nothing);

    state.request(Request { wanted: reset(Scope::Overlay, &[]), ..factory() }, id(5), Timestamp(3)).unwrap();
    assert_eq!(boots(&mut state, 4), AtBoot::CarryOut(id(5)));
    finish(&mut state, id(5));
    assert_eq!(state.volume, Volume::Provisioned(identity(8)));
}

#[test]
fn a_volume_that_came_with_the_image_and_cannot_be_taken_over_is_left_alone() {
    let mut state = DeviceState::shipped_with_volume();
    let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
    state.attempt_failed(job, "no header".into(), Timestamp(2)).unwrap();
    assert_eq!(boots(&mut state, 3), AtBoot::Nothing);
    assert_eq!(state.volume, Volume::Built);
    state.retry(job).unwrap();
    assert_eq!(boots(&mut state, 4), AtBoot::CarryOut(job));
}

#[test]
fn a_device_that_was_not_asked_erases_nothing() {
    assert_eq!(boots(&mut provisioned(), 1), AtBoot::Nothing);
}

#[test]
fn a_second_request_is_told_of_the_first() {
    let mut state = provisioned();
    state.request(factory(), id(1), Timestamp(1)).unwrap();
    assert_eq!(state.request(factory(), id(2), Timestamp(2)), Err(NotTaken::Busy(id(1))));
}

#[test]
fn the_same_idempotency_key_gives_the_same_job_even_after_it_ended() {
    let mut state = provisioned();
    let request = Request { key: Some("ticket-17".into()), ..factory() };
    assert_eq!(state.request(request.clone(), id(1), Timestamp(1)), Ok(Taken::New(id(1))));
    assert_eq!(state.request(request.clone(), id(2), Timestamp(2)), Ok(Taken::Known(id(1))));
    assert_eq!(boots(&mut state, 3), AtBoot::CarryOut(id(1)));
    finish(&mut state, id(1));
    assert_eq!(state.request(request, id(4), Timestamp(4)), Ok(Taken::Known(id(1))));
}

#[test]
fn a_request_for_later_waits_for_its_time() {
    let mut state = provisioned();
    let request = Request { not_before: Some(Timestamp(100)), ..factory() };
    state.request(request, id(1), Timestamp(1)).unwrap();
    assert_eq!(boots(&mut state, 99), AtBoot::Nothing);
    assert_eq!(boots(&mut state, 100), AtBoot::CarryOut(id(1)));
}

#[test]
fn a_queued_job_becomes_due_while_the_system_runs() {
    let mut state = provisioned();
    let request = Request { not_before: Some(Timestamp(100)), reboot: true, ..factory() };
    state.request(request, id(1), Timestamp(1)).unwrap();
    assert_eq!(state.become_due(Timestamp(99)), None);
    let job = state.become_due(Timestamp(100)).expect("its time has come");
    assert_eq!((job.state, job.reboot), (JobState::WaitingForReboot, true));
    assert_eq!(state.become_due(Timestamp(101)), None, "once is enough");
}

#[test]
fn the_command_line_asks_for_a_reset_and_what_was_asked_before_goes_first() {
    let asked = |state: &mut DeviceState| state.begin_at_boot(id(9), true, Timestamp(50)).unwrap();
    let mut state = provisioned();
    assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)));
    assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)), "the power went, and it goes on with the same one");
    assert_eq!(state.job(id(9)).unwrap().kind, Kind::Reset { scope: Scope::Factory });

    let mut state = provisioned();
    state.request(keeping(), id(1), Timestamp(1)).unwrap();
    assert_eq!(asked(&mut state), AtBoot::CarryOut(id(1)));

    let mut state = provisioned();
    state.request(Request { not_before: Some(Timestamp(100)), ..factory() }, id(1), Timestamp(1)).unwrap();
    assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)));
    assert_eq!(state.job(id(1)).unwrap().state, JobState::Cancelled);
}

#[test]
fn history_holds_resets_that_ended() {
    let mut state = provisioned();
    state.request(factory(), id(2), Timestamp(10)).unwrap();
    assert_eq!(state.history().count(), 0);
    state.cancel(id(2), Timestamp(11)).unwrap();
    assert_eq!(state.history().map(|job| job.id).collect::<Vec<_>>(), [id(2)]);
}

#[test]
fn a_step_takes_as_long_as_it_took_when_nothing_came_between() {
    let mut state = DeviceState::shipped();
    assert_eq!(state.expected_duration(&Scope::Factory.steps(Keeping::Nothing)), None);
    for (job, seconds) in [(1, 1000), (2, 7)] {
        if job == 2 {
            state.request(factory(), id(2), Timestamp(2000)).unwrap();
        }
        let begin = 2000 * u64::from(job == 2);
        state.begin_at_boot(id(job), false, Timestamp(begin)).unwrap();
        reach(&mut state, id(job), Step::CreateVolume);
        let before = state.job(id(job)).unwrap().steps.last().map_or(Timestamp(begin), |done| done.at);
        state.step_done(id(job), Outcome::Volume(identity(8)), Timestamp(before.0 + seconds)).unwrap();
        finish(&mut state, id(job));
    }
    assert_eq!(state.expected_duration(&[Step::CreateVolume]), Some(7), "once the power was off for a while");
}

#[test]
fn what_was_begun_is_not_cancelled() {
    let mut state = provisioned();
    state.request(factory(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    assert!(matches!(state.cancel(id(1), Timestamp(3)), Err(NotTaken::Refused(_))));
}

#[test]
fn after_three_failures_the_device_stops_trying() {
    let mut state = DeviceState::shipped();
    let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
    fails(&mut state, job);
    assert_eq!(boots(&mut state, 3), AtBoot::Nothing);
    state.request(factory(), id(5), Timestamp(4)).expect("a reset repairs it");
}

#[test]
fn a_job_that_has_erased_nothing_yet_fails_at_once_and_can_be_tried_again() {
    let mut state = provisioned();
    state.request(keeping(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    reach(&mut state, id(1), Step::StageKept);
    state.attempt_failed(id(1), "no space".into(), Timestamp(3)).unwrap();
    assert_eq!(state.job(id(1)).unwrap().state, JobState::Failed);
    assert_eq!(boots(&mut state, 4), AtBoot::Nothing);
    state.retry(id(1)).unwrap();
    assert_eq!(boots(&mut state, 5), AtBoot::CarryOut(id(1)));
    assert_eq!(state.job(id(1)).unwrap().next_step(), Some(Step::StageKept), "it goes on where it failed");
}

#[test]
fn a_job_that_failed_once_can_be_taken_back_before_the_next_try() {
    let mut state = provisioned();
    state.request(factory(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    reach(&mut state, id(1), Step::FormatHome);
    state.attempt_failed(id(1), "no such device".into(), Timestamp(3)).unwrap();
    assert_eq!(state.job(id(1)).unwrap().state, JobState::WaitingForReboot);
    state.cancel(id(1), Timestamp(4)).unwrap();
    assert_eq!(boots(&mut state, 5), AtBoot::Nothing);
}

#[test]
fn kept_data_that_waits_is_not_lost_to_another_reset() {
    let mut state = provisioned();
    state.request(keeping(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    reach(&mut state, id(1), Step::CreateVolume);
    fails(&mut state, id(1));
    assert!(state.needs_stage());
    assert_eq!(state.request(factory(), id(2), Timestamp(4)), Err(NotTaken::KeptDataWaits(id(1))));
    assert_eq!(state.begin_at_boot(id(3), true, Timestamp(4)), Ok(AtBoot::Nothing), "not even for the command line");
    state.cancel(id(1), Timestamp(5)).unwrap();
    assert!(!state.needs_stage());
    state.request(factory(), id(2), Timestamp(6)).unwrap();
}

#[test]
fn a_device_whose_contents_are_all_kept_has_another_volume_and_forgets_nothing_else() {
    let mut state = provisioned();
    applied(&mut state, 1, None);
    state.set_mode(Mode::ReadOnly, false, None).unwrap();
    state.request(keeping_all(), id(2), Timestamp(3)).unwrap();
    assert_eq!(boots(&mut state, 4), AtBoot::CarryOut(id(2)));
    finish(&mut state, id(2));
    assert_eq!(state.volume, Volume::Provisioned(identity(8)));
    assert_eq!((state.begin_mode().0, state.configuration().as_str()), (Mode::ReadOnly, "site"));
    let read = DeviceState::parse(state.to_text().as_bytes()).unwrap();
    assert_eq!(read.job(id(2)).unwrap().keep_all, Some(Partition::Home), "every boot finds what waits");
}

#[test]
fn what_is_on_trial_is_not_kept() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    assert!(matches!(state.request(keeping_all(), id(2), Timestamp(3)), Err(NotTaken::OnTrial(_))));
    state.confirm().unwrap();
    state.request(keeping_all(), id(2), Timestamp(3)).unwrap();
    boots(&mut state, 4);
    reach(&mut state, id(2), Step::StageKept);
    state.attempt_failed(id(2), "no space".into(), Timestamp(5)).unwrap();
    state.set_mode(Mode::Volatile, false, Some(Within::try_from(60).unwrap())).unwrap();
    assert!(matches!(state.retry(id(2)), Err(NotTaken::OnTrial(_))));
}

#[test]
fn nothing_is_changed_on_a_volume_whose_contents_wait_to_come_back() {
    let mut state = provisioned();
    state.request(keeping_all(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    reach(&mut state, id(1), Step::DestroyKeys);
    fails(&mut state, id(1));
    assert_eq!((state.begin_mode(), state.lasting_mode()), ((Mode::Volatile, None), Mode::Volatile));
    state.cancel(id(1), Timestamp(5)).unwrap();
    assert_eq!(state.begin_mode(), (Mode::Persistent, None), "what waited is given up");
}

#[test]
fn only_the_latest_job_is_tried_again() {
    let mut state = provisioned();
    state.request(factory(), id(1), Timestamp(1)).unwrap();
    boots(&mut state, 2);
    reach(&mut state, id(1), Step::CreateVolume);
    fails(&mut state, id(1));
    state.request(factory(), id(2), Timestamp(4)).unwrap();
    assert_eq!(state.retry(id(1)), Err(NotTaken::NotTheLatest(id(1))));
}

#[test]
fn power_cuts_are_no_failures_but_a_step_that_ends_every_boot_is_given_up() {
    let mut state = provisioned();
    state.request(factory(), id(1), Timestamp(1)).unwrap();
    for step in [Step::Survey, Step::DestroyKeys] {
        assert_eq!(state.job(id(1)).unwrap().next_step(), Some(step));
        for boot in 0..MAX_INTERRUPTIONS {
            assert_eq!(boots(&mut state, boot.into()), AtBoot::CarryOut(id(1)));
        }
        do_step(&mut state, id(1));
    }
    for boot in 0..MAX_INTERRUPTIONS {
        boots(&mut state, boot.into());
    }
    assert_eq!(boots(&mut state, 99), AtBoot::GivenUp(id(1)));
    assert_eq!(boots(&mut state, 100), AtBoot::Nothing);
}

#[test]
fn a_document_of_another_version_is_refused() {
    let error = DeviceState::parse(br#"{"version": 2, "something": "new"}"#).unwrap_err();
    assert!(matches!(error, Unreadable::Version(2)));
}

#[test]
fn unprintable_labels_are_refused() {
    for label in [String::new(), "x".repeat(MAX_TEXT + 1), "a\nb".into()] {
        let by = Requester { label: Some(label), ..somebody() };
        let refused = provisioned().request(Request { by, ..factory() }, id(1), Timestamp(1));
        assert_eq!(refused, Err(NotTaken::Text("label")));
    }
}

#[derive(Debug, Clone)]
enum Event {
    Request(Option<String>, Option<u64>),
    Cancel(usize),
    Retry(usize),
    Boot(bool),
    Step,
    Fail,
}

fn event() -> impl Strategy<Value = Event> {
    let key = proptest::option::of("[a-c]");
    prop_oneof![
        (key, proptest::option::of(0..50u64)).prop_map(|(key, at)| Event::Request(key, at)),
        (0..8usize).prop_map(Event::Cancel),
        (0..8usize).prop_map(Event::Retry),
        any::<bool>().prop_map(Event::Boot),
        Just(Event::Step),
        Just(Event::Fail),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the document stays readable, at most one job is open, and a job leaves a
    /// final state only if it failed and somebody asks for that.
    #[test]
    fn any_history_keeps_the_document_sound(events in prop::collection::vec(event(), 0..200)) {
        let mut state = DeviceState::shipped();
        for (now, event) in events.into_iter().enumerate() {
            let now = now as u64;
            let asks = matches!(event, Event::Cancel(_) | Event::Retry(_));
            let ends = |job: &&Job| job.state.is_final() && !(asks && job.state == JobState::Failed);
            let ended: Vec<_> = state.jobs().iter().filter(ends).cloned().collect();
            let (name, at) = (id(u128::from(now)), Timestamp(now));
            match event {
                Event::Request(key, due) => {
                    let not_before = due.map(Timestamp);
                    let _ = state.request(Request { key, not_before, ..factory() }, name, at);
                }
                Event::Cancel(nth) => {
                    if let Some(job) = state.jobs().get(nth).map(|job| job.id) {
                        let _ = state.cancel(job, at);
                    }
                }
                Event::Retry(nth) => {
                    if let Some(job) = state.jobs().get(nth).map(|job| job.id) {
                        let _ = state.retry(job);
                    }
                }
                Event::Boot(asks) => {
                    state.begin_at_boot(name, asks, at).expect("a boot is never refused");
                }
                Event::Step => {
                    if let Some(job) = state.pending().map(|job| job.id) {
                        let _ = state.step_done(job, Outcome::Volume(identity(now.into())), at);
                    }
                }
                Event::Fail => {
                    if let Some(job) = state.pending().map(|job| job.id) {
                        let _ = state.attempt_failed(job, "broken".into(), at);
                    }
                }
            }
            for job in ended {
                if let Some(kept) = state.job(job.id) {
                    prop_assert_eq!(kept, &job);
                }
            }
            prop_assert_eq!(DeviceState::parse(state.to_text().as_bytes()).expect("readable"), state.clone());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        let _ = DeviceState::parse(&bytes);
    }
}

fn asks(wanted: Wanted) -> Request {
    Request { wanted, ..factory() }
}

fn apply(name: &str, within: Option<u32>) -> Request {
    let within = within.map(|seconds| Within::try_from(seconds).unwrap());
    asks(Wanted::Apply { name: name.parse().unwrap(), within })
}

/// Applies a configuration at a boot.
fn applied(state: &mut DeviceState, job: u128, within: Option<u32>) {
    state.request(apply("site", within), id(job), Timestamp(1)).unwrap();
    assert_eq!(boots(state, 2), AtBoot::CarryOut(id(job)));
    finish(state, id(job));
}

#[test]
fn a_configuration_that_nobody_confirms_is_gone_back_from_once() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    assert_eq!(state.configuration().as_str(), "site");
    let AtBoot::CarryOut(back) = boots(&mut state, 3) else { panic!("it stays") };
    assert_eq!(state.job(back).unwrap().kind, Kind::GoBack);
    finish(&mut state, back);
    assert!(state.configuration().is_factory() && state.trial().is_none());
    assert_eq!(boots(&mut state, 4), AtBoot::Nothing);
}

#[test]
fn a_configuration_with_a_new_name_is_gone_back_to() {
    let mut state = provisioned();
    applied(&mut state, 1, None);
    state.request(apply("other", Some(60)), id(2), Timestamp(3)).unwrap();
    assert_eq!(boots(&mut state, 4), AtBoot::CarryOut(id(2)));
    finish(&mut state, id(2));

    state.configuration_renamed(&"site".parse().unwrap(), &"home".parse().unwrap());
    let AtBoot::CarryOut(back) = boots(&mut state, 5) else { panic!("it stays") };
    finish(&mut state, back);
    assert_eq!(state.configuration().as_str(), "home");
}

#[test]
fn a_configuration_that_is_confirmed_or_had_not_to_be_stays() {
    for within in [Some(60), None] {
        let mut state = provisioned();
        applied(&mut state, 1, within);
        assert_eq!(state.confirm().is_ok(), within.is_some());
        assert_eq!(boots(&mut state, 3), AtBoot::Nothing);
        assert_eq!(state.configuration().as_str(), "site");
        assert_eq!(state.confirm(), Err(NotTaken::NothingOnTrial));
    }
}

#[test]
fn nothing_is_built_on_what_is_on_trial_but_a_reset_takes_it() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    let save = asks(Wanted::Save { name: "other".parse().unwrap(), replace: false });
    let later = Request { not_before: Some(Timestamp(99)), ..factory() };
    for request in [save, apply("other", None), later] {
        assert!(matches!(state.request(request, id(2), Timestamp(3)), Err(NotTaken::OnTrial(_))));
    }
    assert!(matches!(state.set_mode(Mode::Volatile, false, None), Err(NotTaken::OnTrial(_))));
    state.request(factory(), id(2), Timestamp(3)).unwrap();
    assert_eq!(state.confirm(), Err(NotTaken::Busy(id(2))));
    assert_eq!(boots(&mut state, 4), AtBoot::CarryOut(id(2)), "the reset goes first");
    finish(&mut state, id(2));
    assert!(state.trial().is_none() && state.configuration().is_factory());
}

#[test]
fn a_way_back_that_was_given_up_waits_for_somebody() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    let AtBoot::CarryOut(back) = boots(&mut state, 3) else { panic!("it stays") };
    assert!(state.running_trial().is_some());
    fails(&mut state, back);
    assert!(state.running_trial().is_none(), "no boot ends by itself any more");
    assert_eq!(boots(&mut state, 4), AtBoot::Nothing);
    state.retry(back).unwrap();
    assert_eq!(boots(&mut state, 5), AtBoot::CarryOut(back));
    finish(&mut state, back);
    assert!(state.trial().is_none());
}

#[test]
fn whoever_boots_for_a_factory_reset_gets_it_whatever_is_on_trial() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    assert_eq!(state.begin_at_boot(id(9), true, Timestamp(3)).unwrap(), AtBoot::CarryOut(id(9)));
    assert_eq!(state.job(id(9)).unwrap().kind, Kind::Reset { scope: Scope::Factory });
}

#[test]
fn a_mode_is_not_tried_where_something_is_applied() {
    let mut state = provisioned();
    state.request(apply("site", None), id(1), Timestamp(1)).unwrap();
    let within = Within::try_from(60).unwrap();
    assert_eq!(state.set_mode(Mode::ReadOnly, false, Some(within)), Err(NotTaken::Busy(id(1))));
    assert_eq!(boots(&mut state, 2), AtBoot::CarryOut(id(1)));
    state.attempt_failed(id(1), "no room".into(), Timestamp(2)).unwrap();
    state.set_mode(Mode::ReadOnly, false, Some(within)).unwrap();
    assert!(matches!(state.retry(id(1)), Err(NotTaken::OnTrial(_))));
}

#[test]
fn kept_data_that_waits_outlives_what_is_on_trial() {
    let mut state = provisioned();
    applied(&mut state, 1, Some(60));
    state.request(keeping(), id(2), Timestamp(3)).unwrap();
    boots(&mut state, 4);
    reach(&mut state, id(2), Step::DestroyKeys);
    fails(&mut state, id(2));
    assert_eq!(boots(&mut state, 5), AtBoot::Nothing, "nobody goes back over it");
    assert!(state.needs_stage());
    state.retry(id(2)).unwrap();
}

#[test]
fn whoever_boots_for_a_factory_reset_gets_it_and_not_what_waits() {
    let mut state = provisioned();
    state.request(apply("site", None), id(1), Timestamp(1)).unwrap();
    assert_eq!(state.begin_at_boot(id(9), true, Timestamp(3)).unwrap(), AtBoot::CarryOut(id(9)));
    assert_eq!(state.job(id(1)).unwrap().state, JobState::Cancelled);
}

proptest! {
    /// Whatever is asked of modes, confirmed or not, in whatever order with boots: a mode that has to be confirmed and is not
    /// lasts for one boot, and the mode before it is there again.
    #[test]
    fn a_mode_on_trial_lasts_for_one_boot_unless_it_is_confirmed(
        asked in prop::collection::vec((0..3usize, any::<bool>(), any::<bool>()), 1..12)
    ) {
        let mut state = provisioned();
        let mut standing = Mode::Persistent;
        for (mode, is_on_trial, is_confirmed) in asked {
            let mode = Mode::ALL[mode];
            let within = is_on_trial.then(|| Within::try_from(60).unwrap());
            state.set_mode(mode, false, within).unwrap();
            prop_assert_eq!(state.confirm(), Err(NotTaken::NothingOnTrial), "it was not seen yet");
            prop_assert_eq!(state.begin_mode(), (mode, None));
            if is_on_trial && is_confirmed {
                prop_assert!(state.confirm().is_ok());
            }
            if is_on_trial && !is_confirmed {
                let (mode_after, went_back) = state.begin_mode();
                prop_assert_eq!((mode_after, went_back.is_some()), (standing, true));
            } else {
                standing = mode;
            }
            prop_assert_eq!(state.begin_mode(), (standing, None));
        }
    }
}
