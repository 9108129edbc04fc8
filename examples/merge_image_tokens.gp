# One head over an image, as merge_image_tokens writes it: gnuplot -c examples/merge_image_tokens.gp DATA_FOLDER picture.svg
folder = ARG1
set terminal svg size 860,430 font 'sans-serif,13' background rgb 'white'
set output ARG2
set multiplot
set size square .5, 1
set origin 0, 0
set title 'patches: ■ kept, → merged, × dropped'
set xrange [-.5:31.5]
set yrange [31.5:-.5]
unset tics
unset key
plot folder.'/pixels.dat' using 1:2:3:4:5 with rgbimage, \
     folder.'/patches.dat' using (strcol(5) eq 'kept' ? $1 + 1.5 : NaN):($2 + 1.5) with points pt 4 ps 2.2 lw 3 lc rgb 'white', \
     '' using (strcol(5) eq 'merged' ? $1 + 1.5 : NaN):($2 + 1.5):3:4 with vectors lw 1.5 lc rgb 'white', \
     '' using (strcol(5) eq 'dropped' ? $1 + 1.5 : NaN):($2 + 1.5) with points pt 2 ps .9 lw 2 lc rgb 'white'
set origin .5, 0
set title 'cosine of each evicted key with each kept one'
set xlabel 'kept'
set ylabel 'evicted'
set size nosquare .5, 1
set xrange [*:*]
set yrange [*:*] reverse
set autoscale xfix
set autoscale yfix
set palette defined (-1 '#2166ac', 0 '#f7f7f7', 1 '#b2182b')
set cbrange [-1:1]
plot folder.'/similarity.dat' matrix with image
unset multiplot
