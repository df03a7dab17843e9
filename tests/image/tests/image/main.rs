//! What must be true of an image, seen from outside: each case boots it, or goes on with a device that was booted.
//!
//! `NEMOS_IMAGE=nemos.raw NEMOS_SIGNED=signed cargo test --test image`; a word after `--` selects cases by their names,
//! `--ignored` the slow ones, which CI leaves out.

mod archive;
mod behaviour;
mod builder;
mod certificate;
mod configuration;
mod containers;
mod daemon;
mod damage;
mod factory;
mod integrity;
mod kernel_log;
mod keys;
mod overlay;
mod pkcs11;
mod power;
mod profiles;
mod provision;
mod reset;
mod run;
mod status;
mod trust;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nemos_tests::{Case, clean_up, image};

/// A case, named after its function.
macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => {
        vec![$(trial(concat!(stringify!($module), "::", stringify!($case)), $module::$case)),*]
    };
}

/// How long each case took.
static TOOK: Mutex<Vec<(Duration, &str)>> = Mutex::new(Vec::new());

fn trial(name: &'static str, case: fn() -> Case) -> Trial {
    Trial::test(name, move || {
        let begin = Instant::now();
        let ended = case();
        TOOK.lock().unwrap_or_else(PoisonError::into_inner).push((begin.elapsed(), name));
        ended
    })
}

/// CI has little time: who adds a case sees here what it costs, and which one should be a slow one.
fn tell_how_long_each_took() {
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_unstable();
    for (time, name) in took.iter().rev() {
        println!("{:6} s  {name}", time.as_secs());
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let (false, Err(missing)) = (arguments.list, image()) {
        eprintln!("{}", missing.message().unwrap_or_default());
        return ExitCode::FAILURE;
    }
    // Two at once: what takes longest comes first, and the short ones fill up the end.
    let cases = cases![
        run::a_tpm_stays_with_its_disk_and_a_snapshot_forgets_what_was_done_to_it,
        run::a_command_gets_its_output_and_status_through_and_a_snapshot_leaves_the_disk_as_it_was,
        run::a_command_that_reboots_the_machine_is_told,
        certificate::the_key_in_a_tpm_outlives_a_reset_and_certifies_it,
        keys::a_recovery_key_takes_the_demo_keys_place,
        keys::a_tpm_opens_the_overlay_until_it_has_reason_not_to,
        trust::a_disk_is_verified_against_the_keys_it_should_be_signed_with,
        trust::a_signed_image_boots_with_secure_boot_and_its_root_is_verified_with_its_signature,
        trust::an_unsigned_kernel_image_is_refused_by_the_firmware,
        trust::a_root_hash_signed_by_another_key_is_refused_by_the_kernel,
        trust::a_swapped_root_is_refused_by_its_hash,
        provision::the_root_is_verified,
        provision::the_overlay_is_encrypted_and_authenticated,
        provision::everything_is_mounted_where_it_is_expected,
        provision::what_is_written_survives_a_reboot_without_an_io_error,
        provision::two_devices_have_no_secret_in_common,
        status::a_healthy_device_draws_each_layer_and_finds_nothing_wrong,
        behaviour::the_settings_of_the_reference_image_are_in_force,
        behaviour::its_programs_are_there,
        behaviour::audit_records_are_collected,
        containers::one_that_ships_with_the_image_runs,
        containers::what_is_built_on_the_device_is_listed_beside_what_shipped,
        containers::the_store_that_ships_is_whole_and_cannot_be_changed,
        daemon::it_comes_up_when_it_is_called,
        daemon::everybody_may_look_and_not_everybody_may_reset,
        daemon::it_is_hardened,
        daemon::it_writes_who_asked_and_the_answer_to_the_journal,
        daemon::it_comes_back_with_its_job_after_it_was_killed,
        daemon::it_is_started_anew_when_it_hangs,
        reset::a_kept_file_survives_a_factory_reset_and_the_device_becomes_another,
        reset::a_plan_changes_nothing_and_holds_only_while_it_is_true,
        reset::what_cannot_be_kept_is_refused_in_a_sentence,
        reset::a_reset_for_later_can_be_taken_back_and_there_is_one_at_a_time,
        configuration::what_is_saved_is_applied_and_what_is_not_confirmed_is_gone_back_from,
        overlay::what_was_changed_is_told_and_what_was_not_is_not,
        keys::what_is_no_key_is_refused_in_a_sentence,
        keys::secrets_are_nowhere_but_in_the_hands_of_who_asked,
        power::a_reset_that_loses_its_power_is_finished_at_the_next_boot,
        damage::a_device_without_its_overlay_header_is_degraded_and_erases_nothing,
        damage::a_damaged_header_is_remembered_before_a_key_is_tried,
        damage::a_root_with_a_damaged_superblock_is_refused,
        damage::a_root_with_a_damaged_hash_tree_is_refused,
        damage::a_root_with_damaged_files_is_refused,
        integrity::a_healthy_device_is_scrubbed_in_silence,
        integrity::a_damaged_file_of_the_root_is_signalled_named_and_remembered,
        integrity::a_damaged_hash_tree_and_damaged_containers_are_found_by_a_scrub,
        integrity::what_can_be_mended_is_mended_and_told,
        builder::what_is_not_a_disk_is_refused_in_a_sentence,
        builder::a_truncated_disk_is_refused_in_a_sentence,
        builder::a_manifest_that_says_something_else_is_found,
        builder::an_unknown_profile_is_refused_in_a_sentence,
        builder::a_mistake_in_a_recipe_is_told_with_its_line,
        builder::a_package_that_debian_has_not_is_told_with_its_line,
        builder::an_archive_that_is_not_the_one_of_the_recipe_is_refused,
        builder::a_dead_mirror_leaves_nothing_behind,
        builder::a_full_folder_is_told_and_left_as_it_was,
    ];
    // Each of these has its like on the device rig, in every run; or builds an image of its own.
    let slow = cases![
        profiles::a_bootstrapped_image_needs_no_mirror_and_is_the_default_one,
        profiles::a_development_image_needs_no_mirror_and_has_its_tools,
        profiles::a_recipe_of_ones_own_has_its_partition_its_container_and_its_file,
        profiles::a_recipe_of_ones_own_has_a_recovery_key_sealed_for_its_fleet_and_replaced_when_it_was_used,
        pkcs11::a_token_opens_the_device_when_somebody_types_its_pin_or_the_machine_gives_it,
        integrity::a_healthy_device_is_silent_through_ten_boots_and_a_power_cut,
        certificate::the_key_in_a_file_outlives_a_reset_and_certifies_it,
        reset::systemds_factory_reset_target_ends_in_the_same_reset,
        integrity::damage_of_the_overlay_is_found_by_a_scrub_and_gone_after_a_reset,
        reset::a_new_volume_key_leaves_everything_else_as_it_was,
        reset::an_overlay_reset_leaves_home_and_containers_and_a_keep_set_who_it_is,
        archive::a_configuration_goes_to_another_device_in_a_file,
        reset::a_factory_reset_takes_away_what_was_made_on_the_device,
        keys::a_key_file_is_made_tried_and_rotated_on_its_own_disk,
        damage::a_device_that_has_lost_its_memory_gets_it_back,
        reset::the_command_line_ends_in_the_same_reset,
        reset::a_reset_that_cannot_be_finished_leaves_the_device_up_and_can_be_tried_again,
        configuration::a_device_that_nobody_reaches_any_more_goes_back_by_itself,
        overlay::the_index_of_the_image_is_kept_and_what_another_image_had_is_told,
        overlay::what_is_taken_back_is_as_the_image_has_it_after_the_next_boot,
        overlay::a_read_only_device_is_whole_and_takes_changes_only_where_it_must,
        overlay::a_full_overlay_boots_says_so_and_is_taken_back_or_reset,
        overlay::a_mode_ends_when_it_should_and_the_changes_have_waited,
        power::a_first_boot_that_loses_its_power_is_finished_at_the_next_boot,
        certificate::the_key_outlives_two_resets_and_tells_them_apart,
        keys::a_volume_that_somebody_put_there_is_not_opened_whatever_the_state_says,
        keys::what_the_firmware_and_the_tpm_will_not_take_is_foreseen_before_they_refuse,
    ];
    let slow = slow.into_iter().map(|case| case.with_ignored_flag(true));
    let conclusion = libtest_mimic::run(&arguments, cases.into_iter().chain(slow).collect());
    clean_up();
    tell_how_long_each_took();
    conclusion.exit_code()
}
