# The broker's durable side.
steer_test(unit spool steer_proto)
target_sources(test_spool PRIVATE ${CMAKE_SOURCE_DIR}/broker/spool.c)
target_compile_options(test_spool PRIVATE "SHELL:-iquote ${CMAKE_SOURCE_DIR}/broker")
# The disk's answers are replaced where no real disk gives them on demand.
target_link_options(test_spool PRIVATE -Wl,--wrap=write)
steer_test(unit store steer_broker)
foreach(part route route_worker route_fetch route_age)
  steer_test(unit ${part} steer_broker)
  target_sources(test_${part} PRIVATE unit/route_rig.c)
  target_link_options(test_${part} PRIVATE -Wl,--wrap=statvfs)
endforeach()
# A disk that loses power; the store's open() is told of another start of the machine.
steer_test(unit power steer_broker)
target_sources(test_power PRIVATE unit/power_vfs.c)
target_link_options(test_power PRIVATE -Wl,--wrap=open)
