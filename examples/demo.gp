# The demo's quality against memory: gnuplot -c examples/demo.gp build/short.csv quality.svg
set datafile separator ','
set terminal svg size 720,440 font 'sans-serif,13' background rgb 'white'
set output ARG2
set logscale x 2
set xlabel 'bytes of cache held, all layers'
set ylabel 'nats per byte (lower is better)'
set format x '%.0s%cB'
set key top right
set grid ytics lc rgb '#dddddd'
names = '"window" "sinks + window" "heavy hitters"'
set style line 1 lc rgb '#d95f02' lw 2 pt 5
set style line 2 lc rgb '#1b9e77' lw 2 pt 7
set style line 3 lc rgb '#7570b3' lw 2 pt 9
dense_bytes = real(system("awk -F, '$1==\"\\\"dense\\\"\" {print $3}' ".ARG1))
dense = real(system("awk -F, '$1==\"\\\"dense\\\"\" {print $4}' ".ARG1))
plot for [i=1:3] ARG1 skip 1 using (strcol(1) eq word(names, i) ? $3 : NaN):4 with linespoints ls i title word(names, i), \
     dense with lines dt 2 lc rgb '#444444' title sprintf('dense (%.0f kB)', dense_bytes / 1000)
